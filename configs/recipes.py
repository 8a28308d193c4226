"""Recipes that several experiments share."""

from collections.abc import Sequence

import ml_collections

from crossattn_jax import models
from crossattn_jax.data.scene_points import augmentation as scene_augmentation
from crossattn_jax.data.scene_points import s3dis, scannet
from crossattn_jax.training import config as config_lib


def imagenet_classification(
  model: str, image_size: tuple[int, int], epochs: float, warmup_epochs: float
) -> ml_collections.ConfigDict:
  """The DeiT recipe for ImageNet-1k (Touvron et al. 2021, arXiv 2012.12877, table 9).

  AdamW with cosine decay, RandAugment, random erasing, mixup, CutMix, label smoothing.

  Args:
    model: name of a registered model.
    image_size: (height, width) of the images that the model gets.
    epochs: of training.
    warmup_epochs: of linear warm-up, part of `epochs`.

  Returns:
    A complete experiment.
  """
  config = config_lib.default_config('classification')
  config.model = models.model_config(model)
  config.batch_size = 1024
  config.num_epochs = float(epochs)

  config.dataset.name = 'imagenet2012'
  config.dataset.train_split = 'train'
  config.dataset.eval_split = 'validation'
  config.dataset.image_size = image_size

  config.task.label_smoothing = 0.1
  config.task.mixup_alpha = 0.8
  config.task.cutmix_alpha = 1.0

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.05

  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 5e-4
  config.schedule.reference_batch_size = 512
  config.schedule.minimum = 1e-5
  config.schedule.warmup_epochs = float(warmup_epochs)
  config.schedule.warmup_start = 1e-6
  config.schedule.decay_after_warmup = False
  config.schedule.per_epoch = True

  config.evaluation.every_epochs = 1.0
  config.logging.every_steps = 50
  return config


def digits(image_size: tuple[int, int]) -> ml_collections.ConfigDict:
  """Scikit-learn's handwritten digits, 8 x 8 pixels, for small models on a CPU; without a model.

  Args:
    image_size: (height, width) that they are enlarged to.
  """
  config = config_lib.default_config('classification')
  config.dataset.name = 'digits'
  config.dataset.image_size = image_size
  config.dataset.eval_split = 'test'
  config.dataset.mean = (0.5,)
  config.dataset.std = (0.5,)
  config.dataset.cache = True
  # A pixel of the digits.
  config.dataset.augmentation.padding = image_size[0] // 8
  config.dataset.augmentation.flip = 0.0
  config.dataset.augmentation.rand_augment.num_ops = 0
  config.dataset.augmentation.color_jitter = 0.0
  config.dataset.augmentation.random_erasing.probability = 0.0
  config.batch_size = 64
  config.num_epochs = 40.0
  config.schedule.learning_rate = 2e-3
  config.schedule.warmup_epochs = 2.0
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  config.task.label_smoothing = 0.1
  config.evaluation.batch_size = 128
  config.evaluation.every_epochs = 10.0
  config.logging.every_steps = 20
  return config


def shape_scenes(side: int) -> ml_collections.ConfigDict:
  """Semantic segmentation of 64 x 64 pixel procedural scenes, for small models on a CPU.

  Args:
    side: of the square images that the model gets: enlarged, small shapes cover more pixels of its
      maps.
  """
  config = config_lib.default_config('segmentation')
  config.dataset.name = 'shape_scenes/64'
  config.dataset.train_split = config.dataset.eval_split = None
  config.dataset.image_size = (side, side)
  config.dataset.cache = True
  # Scenes differ enough: in a few epochs, other scales than one cost accuracy.
  config.dataset.augmentation.scales = (side / 64,)
  config.dataset.evaluation.resize = 'fit'
  config.dataset.evaluation.base_size = (side, side)
  config.dataset.evaluation.label_step = 64
  config.batch_size = 8
  config.num_epochs = 10.0
  config.task.evaluation.scales = (0.85, 1.0, 1.2)
  config.task.evaluation.flip = True
  use_muon(config)
  config.schedule.name = 'polynomial'
  config.schedule.power = 0.9
  config.schedule.learning_rate = 5e-3
  config.schedule.warmup_epochs = 0.25
  config.evaluation.batch_size = 50
  config.evaluation.every_epochs = 2.5
  config.logging.every_steps = 20
  return config


def use_muon(config: ml_collections.ConfigDict) -> None:
  """Sets the optimizer that brings small networks furthest in few epochs of scenes."""
  config.optimizer.name = 'muon'
  config.optimizer.momentum = 0.95
  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 0.02
  config.optimizer.clip_norm = 1.0


# Of MinkUNet for procedural rooms, and of what MIT sees points with.
ROOM_WIDTHS = (16, 32, 48, 64, 48, 32, 32, 32)


def use_rooms(config: ml_collections.ConfigDict) -> None:
  """Sets how small networks learn from procedural rooms in voxels of 10 cm on a CPU."""
  config.dataset.name = 'room_scenes'
  config.dataset.voxel_size = 0.1
  config.dataset.buckets = ((2816, 832, 224, 64, 16), (5248, 1472, 384, 96, 32))
  config.dataset.augmentation.shift = 0
  config.batch_size = 4
  use_muon(config)
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 5e-3
  config.schedule.warmup_steps = 50
  config.evaluation.batch_size = 4
  config.evaluation.every_epochs = 5.0
  config.logging.every_steps = 20


# Rows of the levels of a scene, by the side of its voxels in metres.
_SCENE_ROWS = {
  0.05: ((16384, 6144, 1664, 512, 128), (32768, 12288, 3328, 1024, 256)),
  0.04: ((32768, 12288, 3328, 1024, 256), (98304, 32768, 8192, 2048, 512)),
  0.02: ((49152, 16384, 4096, 1024, 256), (98304, 32768, 8192, 2048, 512)),
}


def mit(model: str, dataset: str) -> ml_collections.ConfigDict:
  """The first stage of MIT as its authors' code trains it, of scenes of which classes are known.

  Args:
    model: name of a registered model.
    dataset: 'scannet', or 's3dis', for which the sizes of data are ours.
  """
  config = config_lib.default_config('scene_labels')
  config.model = models.model_config(model, dtype='bfloat16')
  config.batch_size, config.num_epochs = 32, 1000.0
  _use_scenes(config, dataset, 0.05)
  if model == 'mit_points':
    config.dataset.num_views = 0
  else:
    config.model.num_views = config.dataset.num_views
    config.model.image_size = config.dataset.image_size
  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.01
  config.optimizer.decay_vectors = True
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 1e-2
  config.schedule.restart_epochs = 20.0
  config.schedule.steps_late = 1
  config.schedule.epoch_starts_ahead = True
  config.evaluation.every_epochs = 20.0
  return config


def minkunet(model: str, dataset: str) -> ml_collections.ConfigDict:
  """The second stage of MIT as its authors' code trains it, of labels that the first one made.

  Args:
    model: name of a registered model.
    dataset: see `mit`.
  """
  config = config_lib.default_config('point_segmentation')
  config.model = models.model_config(model, dtype='bfloat16')
  config.batch_size, config.num_epochs = 24, 200.0
  _use_scenes(config, dataset, 0.02)
  config.dataset.augmentation.update(scene_augmentation.published())
  config.optimizer.name = 'sgd'
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_vectors = True
  config.schedule.name = 'polynomial'
  config.schedule.power = 0.9
  config.schedule.learning_rate = 1e-2
  config.evaluation.every_epochs = 10.0
  return config


def _use_scenes(config: ml_collections.ConfigDict, dataset: str, voxel_size: float) -> None:
  """Sets the data of both stages of MIT; `voxel_size` is ScanNet's."""
  config.dataset.name = dataset
  config.dataset.class_names = {'scannet': scannet, 's3dis': s3dis}[dataset].CLASS_NAMES
  config.model.num_classes = len(config.dataset.class_names)
  if dataset == 'scannet':
    config.dataset.voxel_size, config.dataset.repeat = voxel_size, 5
    config.dataset.buckets = _SCENE_ROWS[voxel_size]
  else:
    config.dataset.voxel_size, config.dataset.repeat = 0.04, 16
    config.dataset.buckets = _SCENE_ROWS[0.04]
    config.dataset.num_views, config.dataset.image_size = 6, (256, 256)
  config.logging.every_steps = 50


def detection_scenes() -> ml_collections.ConfigDict:
  """Detection in 160 x 160 pixel procedural scenes of 3 to 8 objects, for small models on a CPU."""
  config = config_lib.default_config('detection')
  config.dataset.name = 'shape_scenes/160'
  config.dataset.train_split = config.dataset.eval_split = None
  config.dataset.image_size = (160, 160)
  config.dataset.max_boxes = 8
  config.dataset.cache = True
  config.batch_size = 8
  config.num_epochs = 12.0
  use_muon(config)
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 5e-3
  config.schedule.warmup_epochs = 0.5
  config.evaluation.batch_size = 20
  config.evaluation.every_epochs = 4.0
  config.logging.every_steps = 20
  return config


def ccnet() -> ml_collections.ConfigDict:
  """What CCNet's training script has for every data set: colours, scales, SGD, poly schedule."""
  config = config_lib.default_config('segmentation')
  config.dataset.train_split = config.dataset.eval_split = None
  config.dataset.channels = 'bgr'
  config.dataset.mean = (104.00698793, 116.66876762, 122.67891434)
  config.dataset.std = (1.0, 1.0, 1.0)
  config.task.evaluation.absent_classes = 'zero'
  config.optimizer.name = 'sgd'
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_vectors = True
  config.schedule.name = 'polynomial'
  config.schedule.power = 0.9
  config.schedule.learning_rate = 1e-2
  config.logging.every_steps = 50
  return config


def ade20k(config: ml_collections.ConfigDict) -> None:
  """Sets what mmsegmentation has for ADE20K: augmentation, and images of evaluation.

  Args:
    config: a segmentation experiment, changed in place.
  """
  config.dataset.name = 'ade20k_folder'
  config.dataset.train_split = config.dataset.eval_split = None
  config.dataset.augmentation.resize = 'ratio'
  config.dataset.augmentation.base_size = (2048, 512)
  config.dataset.augmentation.ratio = (0.5, 2.0)
  config.dataset.augmentation.max_class_share = 0.75
  config.dataset.augmentation.photometric = True
  config.dataset.evaluation.resize = 'fit'
  config.dataset.evaluation.base_size = (2048, 512)
  config.task.evaluation.average_probabilities = True
  config.task.evaluation.absent_classes = 'skip'
  config.logging.every_steps = 50


# Epochs, and those after which the rate drops.
_DETECTION_SCHEDULES = {'1x': (12.0, (8, 11)), '3x': (36.0, (27, 33))}


def coco_detection(network: str, length: str) -> ml_collections.ConfigDict:
  """What mmdetection has for COCO with AdamW: images of 800 x 1333 pixels, two drops of the rate.

  Args:
    network: name of a detector, a backbone and a head.
    length: '1x', or '3x': three times as long, on images of many sizes.

  Raises:
    ValueError: there is no such detector or schedule.
  """
  if length not in _DETECTION_SCHEDULES:
    raise ValueError(f'the schedule is {length!r}; it must be {" or ".join(_DETECTION_SCHEDULES)}')
  config = config_lib.default_config('detection')
  config.model = models.model_config(network, dtype='bfloat16')
  config.dataset.name = 'coco'
  config.dataset.image_size = (800, 1344)
  config.dataset.augmentation.long_side = config.dataset.evaluation.long_side = 1333
  if length == '3x':
    config.dataset.augmentation.short_side = (480, 800)
    config.dataset.augmentation.short_step = 32
  config.batch_size = 16
  config.num_epochs, config.schedule.boundary_epochs = _DETECTION_SCHEDULES[length]
  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_vectors = True
  config.schedule.name = 'step'
  config.schedule.factor = 0.1
  config.schedule.learning_rate = 1e-4
  config.schedule.decay_after_warmup = False
  config.schedule.warmup = 'of_schedule'
  config.schedule.warmup_steps = 500
  config.schedule.warmup_start = 1e-7
  config.evaluation.every_epochs = 1.0
  config.logging.every_steps = 50
  return config


def icafusion(argument: str, class_names: Sequence[str]) -> ml_collections.ConfigDict:
  """What ICAFusion's script has for every data set: YOLOv5's recipe on images of 640 x 640 pixels.

  Args:
    argument: 'MODEL', or 'MODEL,FUSION' of another fusion than the transformer: 'nin', 'add'; or
      the stream that is to see alone, 'rgb' or 'thermal'.
    class_names: in the order of the numbers in the files of objects.
  """
  model, _, fusion = argument.partition(',')
  config = config_lib.default_config('paired_detection')
  config.model = models.model_config(model, dtype='bfloat16')
  if fusion in ('rgb', 'thermal'):
    config.model.modalities = (fusion,)
  elif fusion:
    config.model.fusion = fusion
  config.dataset.name = 'pair_folder'
  config.dataset.class_names = tuple(class_names)
  config.batch_size = 8
  config.num_epochs = 60.0
  config.ema.decay = 0.9999
  config.ema.ramp_updates = 2000.0
  config.optimizer.name = 'sgd'
  config.optimizer.momentum = 0.937
  config.optimizer.warmup_momentum = 0.8
  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 5e-4
  config.optimizer.nominal_batch_size = 64
  config.optimizer.warmup_starts = (('.*/bias', 0.1),)
  if fusion in ('', 'transformer'):
    # Scales of layer norms decay, those of batch norms do not. The factors of residual sums are
    # called biases, and positions and the factors of shrinking by no name that is trained.
    block = r'fusion_\d/block_\d+'
    config.optimizer.decay_include = (rf'{block}/(attention/(rgb|thermal)/)?norm/scale',)
    config.optimizer.warmup_starts += ((rf'{block}/(attention|mlp)_sum_(rgb|thermal)/.*', 0.1),)
    config.freeze = (r'fusion_\d/(positions|shrinking)_.*',)
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 0.01
  config.schedule.minimum = 0.001
  config.schedule.decay_after_warmup = False
  config.schedule.per_epoch = True
  config.schedule.epochs_late = 1
  config.schedule.warmup = 'to_schedule'
  config.schedule.warmup_epochs = 3.0
  config.schedule.warmup_min_steps = 1000
  config.evaluation.every_epochs = 1.0
  config.checkpoint.best_metric = 'map50'
  config.checkpoint.use = 'best'
  config.logging.every_steps = 50
  return config


# Epochs, the rate, the epochs after which it drops to a tenth, and the batch.
_SKETCH_LOCALIZER = {
  # As it trains: its schedule divides the rate by ten before the first step, and again.
  'release': (12.0, 1e-5, (4,), 7),
  # As its command reads.
  'nominal': (12.0, 1e-4, (), 7),
  # As others repaired it, with other rates for some parts.
  'repaired': (50.0, 1e-4, (40,), 10),
}


def sketch_localizer(argument: str, sketches: str) -> ml_collections.ConfigDict:
  """What the sketch localizer's release has for COCO's photos, and what its repair has.

  Args:
    argument: 'MODEL', or 'MODEL,RECIPE': 'release', with the rates at which the released code
      really trains, 'nominal', with those that its command names, or 'repaired'.
    sketches: kind of the drawings; see `data.sketch_localization.drawings`.

  Raises:
    ValueError: there is no such model or recipe.
  """
  model, _, recipe = argument.partition(',')
  recipe = recipe or 'release'
  if recipe not in _SKETCH_LOCALIZER:
    raise ValueError(f'the recipe is {recipe!r}; it must be {" or ".join(_SKETCH_LOCALIZER)}')
  repaired = recipe == 'repaired'
  config = config_lib.default_config('sketch_localization')
  config.model = models.model_config(model, dtype='bfloat16')
  config.dataset.sketches.name = sketches
  config.dataset.sketches.style = 'repaired' if repaired else 'release'
  config.dataset.augmentation.short_side = (480, 800)
  config.dataset.augmentation.short_step = 16
  config.dataset.augmentation.crop.probability = 0.5
  config.dataset.evaluation.short_side = 800
  config.dataset.augmentation.long_side = config.dataset.evaluation.long_side = 1333
  if not repaired:
    config.task.evaluation.official = True
    config.task.evaluation.area = 'resized'
  schedule, optimizer = config.schedule, config.optimizer
  schedule.name = 'step'
  schedule.factor = 0.1
  config.num_epochs, schedule.learning_rate, schedule.boundary_epochs, config.batch_size = (
    _SKETCH_LOCALIZER[recipe]
  )
  optimizer.name = 'adamw'
  optimizer.weight_decay = 1e-4
  optimizer.clip_norm = 1.0
  # Of the backbone neither vectors nor the detection tokens decay; of the rest everything does.
  optimizer.decay_vectors = True
  optimizer.decay_exclude = (r'backbone/(.*/)?(bias|scale)', r'backbone/det_(token|position)')
  if repaired:
    optimizer.multipliers = (
      ('backbone/.*', 0.1),
      (r'decoder/(point|layer_\d+/deformable/offsets)/.*', 0.1),
    )
  config.evaluation.every_epochs = 1.0
  config.logging.every_steps = 50
  return config


def image_sentence_retrieval(model: str) -> ml_collections.ConfigDict:
  """SAEM's recipe (yiling2018/saem) for region features and captions as SCAN distributes them.

  Args:
    model: name of a registered model; without a text encoder, set `config.dataset.word_files`. Of
      'saem' and 'saem_*' also the losses are SAEM's.
  """
  config = config_lib.default_config('retrieval')
  config.model = models.model_config(model, dtype='bfloat16')
  config.dataset.name = 'region_files'
  config.dataset.train_split = 'train'
  config.dataset.eval_split = 'dev'
  config.task.margin = 0.2
  config.task.saem_losses = model.startswith('saem')
  config.batch_size = 64
  config.num_epochs = 30.0
  config.optimizer.name = 'adam'
  config.optimizer.clip_norm = 2.0
  if models.create_model(model).text_layers:
    config.optimizer.multipliers = (('bert/.*', 0.0),)
  config.schedule.name = 'step'
  config.schedule.learning_rate = 1e-4
  config.schedule.boundary_epochs = (10, 20)
  config.schedule.factor = 0.1
  config.evaluation.every_steps = 1000
  config.checkpoint.every_epochs = 1.0
  config.checkpoint.use = 'best'
  config.logging.every_steps = 50
  return config
