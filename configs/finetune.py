r"""Any model on your own images, from weights or from scratch: see docs/data.md.

  python main.py --config=configs/finetune.py:crossvit_small_240 --workdir=/tmp/run \
    --config.weights=WEIGHTS --config.dataset.data_dir=FOLDER

WEIGHTS is the workdir of a run, a file of weights, `official` or `timm`; without it, training
starts from scratch: at another rate, and for longer. FOLDER holds a folder of images per class, or
`train` and `val` with these. Classes, splits and batch size are made to fit it, and said.

A backbone with a head, such as `biformer_small+upernet`, or a `ccnet_*`, labels pixels: FOLDER
holds images and masks (docs/segmentation.md). One with `+retinanet`, `+faster_rcnn` or `+mask_rcnn`
finds objects: FOLDER holds images and COCO's JSON or YOLO's text files (docs/detection.md). An
`icafusion_*` finds them in pairs: FOLDER holds `visible`, `infrared` and `labels`
(docs/icafusion.md). A `sketch_localizer_*` finds what a sketch shows: FOLDER as for detectors, and
`--config.dataset.sketches.data_dir=SKETCHES`, a folder of sketches for each class, called like it
(docs/sketch_localizer.md). A `minkunet*` labels points, and a `mit_*` learns to from the classes of
scenes: FOLDER holds point clouds (docs/mit.md). `mmvit_base_audio` hears: FOLDER holds .wav files
and tables (docs/data.md).
"""

from flax import linen as nn
import ml_collections

from configs import ccnet_ade20k, mask_rcnn_coco, mmvit_audioset, recipes, segmentation_ade20k
from crossattn_jax import models
from crossattn_jax.models import icafusion, minkunet, mit
from crossattn_jax.models.sketch_localizer import model as sketch_localizer
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import optimizers, schedules


def get_config(model: str = 'crossvit_small_240') -> ml_collections.ConfigDict:
  """Returns the experiment of a classifier of images, sounds, pixels or points, or of a detector.

  Raises:
    ValueError: there is no such model, or it is of another kind.
  """
  module = models.create_model(model)
  if isinstance(module, icafusion.ICAFusion):
    config = _paired_detection(model)
  elif isinstance(module, sketch_localizer.SketchLocalizer):
    config = _sketch_localization(model)
  elif isinstance(module, minkunet.MinkUNet):
    config = _point_segmentation(model)
  elif isinstance(module, mit.MIT | mit.MITPoints | mit.MITImages):
    config = _scene_labels(model, module)
  elif hasattr(module, 'detect'):
    config = _detection(model)
  elif hasattr(module, 'style'):
    config = _segmentation(model)
  elif getattr(module, 'num_classes', None) is None:
    raise ValueError(
      f'{model!r} has no classes to learn: configs/finetune.py trains classifiers, such as '
      "'crossvit_small_240', networks that label pixels, such as 'biformer_small+upernet', and "
      "detectors, such as 'crossformer_small+retinanet'"
    )
  elif getattr(module, 'num_channels', 3) == 1:
    config = _audio(model)
  else:
    config = _classification(model, module.image_size)
  # From the data.
  config.model.num_classes = None
  config.dataset.train_split = None
  config.dataset.eval_split = None
  config.fit_to_data = True
  if 'drop_path_rate' in config.model:
    config.model.drop_path_rate = 0.1
  if 'distillation' in config.model:
    config.model.distillation = False

  config.optimizer = optimizers.default_config()
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  config.schedule = schedules.default_config()
  config.schedule.minimum = 1e-6
  config.schedule.warmup_epochs = 1.0
  config.schedule.learning_rate = None
  config.num_steps = None
  config.num_epochs = None
  config.from_weights.update(learning_rate=2e-4, num_epochs=20.0)
  config.from_scratch.update(learning_rate=1e-3, num_epochs=100.0)
  config.evaluation.every_steps = None
  config.evaluation.every_epochs = 1.0
  config.checkpoint.use = 'best'
  config.logging.every_steps = 10
  return config


def _classification(model: str, image_size: tuple[int, int]) -> ml_collections.ConfigDict:
  config = config_lib.default_config('classification')
  # One value in two places: images of another size are asked for by either key. As the weights'
  # own, or the model's.
  size = ml_collections.FieldReference(None, field_type=tuple)
  config.model = models.model_config(model)
  if 'image_size' in config.model:
    config.model.image_size = size
  config.dataset.name = 'image_folder'
  config.dataset.image_size = size
  config.dataset.mean = ml_collections.config_dict.placeholder(tuple)
  config.dataset.std = ml_collections.config_dict.placeholder(tuple)
  # Networks for large images see all of them.
  config.dataset.crop_fraction = 1.0 if min(image_size) > 240 else 224 / 256
  config.dataset.augmentation.scale = (0.35, 1.0)
  config.dataset.augmentation.rand_augment.num_ops = 0
  config.dataset.augmentation.color_jitter = 0.2
  config.dataset.augmentation.random_erasing.probability = 0.0
  config.task.label_smoothing = 0.1
  config.batch_size = 64
  return config


def _segmentation(model: str) -> ml_collections.ConfigDict:
  if '+' not in model:
    config = ccnet_ade20k.get_config(model)
  elif model.startswith(segmentation_ade20k.SYSTEMS):
    config = segmentation_ade20k.get_config(model)
  else:
    config = config_lib.default_config('segmentation')
    config.model = models.model_config(model)
    recipes.ade20k(config)
    config.dataset.image_size = (512, 512)
  config.dataset.name = 'segmentation_folder'
  # As large as the crops, whatever these are.
  config.dataset.augmentation.base_size = None
  config.dataset.evaluation.base_size = None
  config.task.evaluation.scales, config.task.evaluation.flip = (1.0,), False
  config.model.dtype = None
  config.batch_size = 8
  return config


def _detection(model: str) -> ml_collections.ConfigDict:
  backbone, _, head = model.partition('+')
  config = mask_rcnn_coco.detection(backbone, head)
  config.dataset.name = 'detection_folder'
  # One shape for images wider and higher, as large as it holds.
  config.dataset.image_size = (640, 640)
  config.dataset.augmentation.long_side = config.dataset.evaluation.long_side = None
  # As the weights' own, or the usual ones.
  config.dataset.mean = ml_collections.config_dict.placeholder(tuple)
  config.dataset.std = ml_collections.config_dict.placeholder(tuple)
  config.model.dtype = config.model.frozen_norm = None
  config.batch_size = 8
  return config


def _paired_detection(model: str) -> ml_collections.ConfigDict:
  config = recipes.icafusion(model, ())
  # A rate for any batch. What the authors' script leaves as it is drawn is trained, too.
  config.task.loss.reduction = 'mean'
  config.freeze = ()
  config.model.dtype = None
  return config


def _sketch_localization(model: str) -> ml_collections.ConfigDict:
  config = recipes.sketch_localizer(f'{model},repaired', 'sketch_folder')
  config.dataset.name = 'detection_folder'
  config.dataset.image_size = (640, 640)
  config.dataset.augmentation.crop.probability = 0.0
  for part in (config.dataset.augmentation, config.dataset.evaluation):
    part.short_side = part.long_side = None
  config.dataset.mean = ml_collections.config_dict.placeholder(tuple)
  config.dataset.std = ml_collections.config_dict.placeholder(tuple)
  config.model.dtype = None
  config.batch_size = 8
  return config


def _point_segmentation(model: str) -> ml_collections.ConfigDict:
  config = config_lib.default_config('point_segmentation')
  config.model = models.model_config(model)
  config.dataset.name = 'point_folder'
  config.batch_size = 4
  return config


def _scene_labels(model: str, module: nn.Module) -> ml_collections.ConfigDict:
  config = config_lib.default_config('scene_labels')
  config.model = models.model_config(model)
  config.dataset.name = 'point_folder'
  config.dataset.num_views = getattr(module, 'num_views', 0)
  config.dataset.image_size = getattr(module, 'image_size', config.dataset.image_size)
  config.batch_size = 4
  return config


def _audio(model: str) -> ml_collections.ConfigDict:
  config = mmvit_audioset.get_config('20k')
  config.model = models.model_config(model)
  config.batch_size = 16
  return config
