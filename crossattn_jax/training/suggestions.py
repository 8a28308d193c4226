"""What to write instead of a key that a config does not have."""

from collections.abc import Iterable
import difflib
import re

# What is here -> words of other libraries for it. Keys are named as 'config.KEY'; what names none
# is said as it is.
_SYNONYMS = {
  'config.accumulation_steps': 'accum_iter accumulate_grad_batches gradient_accumulation_steps',
  'config.batch_size': 'batch batchsize bs per_device_train_batch_size train_batch_size',
  'config.checkpoint.every_epochs': 'save_every save_freq save_interval save_steps',
  'config.checkpoint.patience': 'early_stop early_stopping early_stopping_patience',
  'config.dataset.augmentation.flip': 'hflip horizontal_flip',
  'config.dataset.augmentation.rand_augment.num_ops': 'aa auto_augment randaug randaugment',
  'config.dataset.augmentation.random_erasing.probability': 'reprob',
  'config.dataset.crop_fraction': 'crop_pct',
  'config.dataset.data_dir': 'data data_path data_root dataset_path root train_dir',
  'config.dataset.eval_split or config.dataset.train_split': 'split',
  'config.dataset.eval_split': 'test_split val_split validation_split',
  'config.dataset.num_workers': 'j workers',
  'config.ema.decay': 'ema_decay model_ema model_ema_decay',
  'config.ema.ramp_updates': 'ema_tau tau',
  'config.evaluation.every_epochs': 'eval_interval eval_every val_interval',
  'config.freeze': 'freeze_at freeze_backbone freeze_encoder freeze_layers frozen frozen_stages',
  'config.logging.every_steps': 'log_every log_interval log_steps',
  'config.model.drop_path_rate': 'drop_path',
  'config.model.drop_rate': 'drop dropout',
  'config.model.dtype=bfloat16': 'amp bf16 fp16 half mixed_precision precision',
  'config.model.image_size and config.dataset.image_size': (
    'image_size img_size imgsz input_size resolution size'
  ),
  'config.model.name': 'arch model_name',
  'config.model.num_channels': 'channels in_channels in_chans',
  'config.model.num_classes': 'classes n_classes nb_classes nc num_labels',
  'config.model.remat': 'grad_checkpointing gradient_checkpointing',
  'config.num_epochs': 'epochs max_epochs n_epochs num_train_epochs',
  'config.num_steps': 'iterations iters max_iters max_steps steps total_steps train_steps',
  'config.optimizer.beta1 and config.optimizer.beta2': 'betas opt_betas',
  'config.optimizer.clip_norm': 'clip clip_grad gradient_clip_val grad_clip max_grad_norm',
  'config.optimizer.epsilon': 'eps opt_eps',
  'config.optimizer.multipliers': 'layer_decay llrd',
  'config.optimizer.name': 'opt optim',
  'config.optimizer.nominal_batch_size': 'nbs nominal_batch',
  'config.optimizer.warmup_starts': 'warmup_bias_lr',
  'config.optimizer.weight_decay': 'decay l2 wd',
  'config.schedule.learning_rate': 'base_lr init_lr learning_rate lr lr0 max_lr',
  'config.schedule.minimum': 'final_lr lrf min_lr',
  'config.schedule.name': 'lr_scheduler lr_scheduler_type sched scheduler',
  'config.schedule.warmup_epochs or config.schedule.warmup_steps': 'warmup warmup_iters',
  'config.seed': 'manual_seed random_seed',
  'config.task.cutmix_alpha': 'cutmix',
  'config.task.label_smoothing': 'smoothing',
  'config.task.mixup_alpha': 'mixup',
  'config.weights': (
    'checkpoint_path ckpt finetune from_pretrained init_from initial_checkpoint load_from '
    'pretrained pretrained_weights'
  ),
  'config.weights_fresh': 'fresh_head ignore_mismatched_sizes reset_classifier reset_head strict',
  'the command that started a run continues it from its last checkpoint': (
    'auto_resume resume resume_from resume_from_checkpoint'
  ),
  'all devices are used, and config.mesh splits the work over them; '
  'JAX_PLATFORMS=cpu before the command takes the CPU': (
    'accelerator device devices gpu gpus local_rank n_gpus no_cuda num_gpus'
  ),
  'runs are written to --workdir=FOLDER': 'log_dir logdir out_dir output_dir project save_dir',
  'models return their features beside their result, see docs/architecture.md': (
    'features_only out_indices'
  ),
  'batch norms take the statistics of the whole batch on all devices': 'sync_bn sync_batchnorm',
}
_MEANT = {word: meant for meant, words in _SYNONYMS.items() for word in words.split()}


def unknown_key_message(key: str, known: Iterable[str]) -> str:
  """Says that a key is unknown, and which is meant or else which there are.

  Args:
    key: joined by dots, without 'config.'.
    known: all keys of the config in the same form, sections included.
  """
  known = list(known)
  section = key.rpartition('.')[0]
  while section and section not in known:
    section = section.rpartition('.')[0]
  depth = section.count('.') + 1 if section else 0
  inside = [k for k in known if k.startswith(section) and k.count('.') == depth and k != section]
  there = f'config.{section}' if section else 'the config'
  names = ', '.join(k.rpartition('.')[2] for k in inside)
  listing = f'{there} has {names}; docs/config.md says what each is for'
  return f'unknown config key config.{key}; {suggestion(key, known) or listing}'


def suggestion(key: str, known: Iterable[str]) -> str | None:
  """What is probably meant by an unknown key, as a question or as advice; None where unclear.

  Args:
    key: as that of `unknown_key_message`.
    known: likewise.
  """
  known = list(known)
  key = key.replace('-', '_').lower()
  if key in known:
    return f'did you mean config.{key}?'
  section, _, word = key.rpartition('.')
  names = [k.rpartition('.')[2] for k in known if k.rpartition('.')[0] == section]
  prefix = f'config.{section}.' if section else 'config.'
  near = next((prefix + name for name in difflib.get_close_matches(word, names, n=1)), None)
  synonym = _MEANT.get(word)
  if synonym and not _is_known(synonym, known):
    synonym = None
  elsewhere = [f'config.{k}' for k in known if k.rpartition('.')[2] == word]
  same = ' or '.join(elsewhere) if 1 <= len(elsewhere) <= 2 else None
  if not section:
    found = synonym or same or near
  elif synonym and synonym.startswith(prefix):
    found = synonym
  else:  # In the right section a slip is likelier than another library's word.
    found = near or synonym or same
  if not found and section and section not in known:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    found = f'config.{close[0]}' if close else None
  return f'did you mean {found}?' if found and found.startswith('config.') else found


def _is_known(meant: str, known: list[str]) -> bool:
  return all(key in known for key in re.findall(r'config\.([\w.]+)', meant))
