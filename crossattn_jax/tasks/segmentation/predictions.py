"""What a network that labels pixels makes of image files and of evaluation images."""

from collections.abc import Mapping, Sequence

from etils import epath
import jax
import numpy as np
from PIL import Image

from crossattn_jax.data import levels
from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.tasks import attention_maps, base, drawing, predictor
from crossattn_jax.tasks.segmentation import pictures


class Predictor(predictor.FilePredictor):
  """Writes the classes of pixels as labels, as colours, and laid over the image.

  `labels/NAME.png` holds labels as the data set's files have them (for Cityscapes what the test
  server takes), `colors/NAME.png` the classes with a palette, `NAME.png` the image, the classes
  laid over it, and a legend.
  """

  kinds = ('labels', 'colors')
  num_samples = 8

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """An image as evaluation has it, and as the file has it."""
    batch, image = data.read_image(*source.paths, self.task.config.dataset)
    return predictor.Loaded(predictor.row_of(batch, 0), np.asarray(image))

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Classes of the pixels of images as `data.read_image` prepares them.

    Returns:
      `classes` `[batch, rows, columns]`, of which `label_size` counts, and where the model has them
      attention maps `attention_maps/NAME` and `attention_queries/NAME` over the padded `image`.
    """
    outputs = {'classes': self.task.classes(variables, batch), 'label_size': batch['label_size']}
    model = self.task.model
    if hasattr(model, 'attention_maps'):
      _, features = model.apply(variables, batch['image'])
      outputs |= {'image': batch['image']} | attention_maps.outputs(
        model, features, batch.get('place')
      )
    return outputs

  def record(
    self, shown: np.ndarray, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The share of each class; writes labels and colours."""
    taxonomy, classes = self.task.taxonomy, _classes(result)
    drawing.write_png(files['labels'], Image.fromarray(taxonomy.to_labels(classes)))
    drawing.write_png(files['colors'], pictures.with_palette(classes, taxonomy.palette))
    return {'classes': predictor.class_shares(classes, taxonomy.class_names)}

  def sample(
    self, shown: np.ndarray, result: predictor.Row, true: np.ndarray | None = None
  ) -> pictures.Sample:
    """An image with its classes and attention."""
    maps = attention_maps.of_example(result)
    return pictures.Sample(
      image=shown,
      predicted=_classes(result),
      true=true,
      seen=levels.denormalize(result['image'], self.task.config.dataset) if maps else None,
      attention=maps,
    )

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same, and the true classes."""
    rows, columns = example['image_size']
    height, width = example['label_size']
    image = levels.denormalize(example['image'][:rows, :columns], self.task.config.dataset)
    return self.sample(image, result, example['label'][:height, :width])

  def draw(self, path: epath.Path, sample: pictures.Sample) -> None:
    """See `pictures.overlay`."""
    pictures.overlay(path, sample, self.task.taxonomy.class_names, self.task.taxonomy.palette)

  def draw_sheet(self, path: epath.Path, samples: Sequence[pictures.Sample]) -> None:
    """See `pictures.sheet`."""
    pictures.sheet(path, samples, self.task.taxonomy.class_names, self.task.taxonomy.palette)


def _classes(result: predictor.Row) -> np.ndarray:
  height, width = result['label_size']
  return result['classes'][:height, :width].astype(np.uint8)
