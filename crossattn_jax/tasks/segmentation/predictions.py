"""What a network that labels pixels makes of image files and of evaluation images."""

from collections.abc import Sequence

from etils import epath
import jax
import numpy as np
from PIL import Image

from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.tasks import attention_maps, base, drawing
from crossattn_jax.tasks.segmentation import pictures

_SAMPLES = 8


class Predictor(base.Predictor):
  """Writes the classes of pixels as labels, as colours, and laid over the image."""

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Classes of the pixels of images as `data.read_image` prepares them.

    Returns:
      `classes` `[batch, rows, columns]`, of which `label_size` counts, and where the model has them
      attention maps `attention_maps/NAME` and `attention_queries/NAME` over the padded image.
    """
    outputs, model = {'classes': self.task.classes(variables, batch)}, self.task.model
    if hasattr(model, 'attention_maps'):
      _, features = model.apply(variables, batch['image'])
      outputs |= attention_maps.outputs(model, features)
    return outputs

  def predict_files(self, inputs: Sequence[epath.Path], output: epath.Path) -> list[base.Record]:
    """Writes what each pixel of each image is, in three forms.

    `labels/NAME.png` holds labels as the data set's files have them (for Cityscapes what the test
    server takes), `colors/NAME.png` the classes with a palette, `NAME.png` the image, the classes
    laid over it, and a legend.
    """
    for kind in ('labels', 'colors'):
      (output / kind).mkdir(parents=True, exist_ok=True)
    return super().predict_files(inputs, output)

  def predict_file(self, path: epath.Path, name: str, output: epath.Path) -> base.Record:
    """See `predict_files`."""
    taxonomy, dataset = self.task.taxonomy, self.task.config.dataset
    batch, picture = data.read_image(path, dataset)
    outputs = self.outputs(batch)
    height, width = batch['label_size'][0]
    classes = outputs['classes'][0, :height, :width].astype(np.uint8)
    files = {'picture': output / f'{name}.png'}
    files |= {kind: output / kind / f'{name}.png' for kind in ('labels', 'colors')}
    drawing.write_png(files['labels'], Image.fromarray(taxonomy.to_labels(classes)))
    drawing.write_png(files['colors'], pictures.with_palette(classes, taxonomy.palette))
    maps = attention_maps.of_example(outputs, 0)
    pictures.overlay(
      files['picture'],
      np.asarray(picture),
      classes,
      taxonomy.class_names,
      taxonomy.palette,
      (data.denormalize(batch['image'][0], dataset), maps) if maps else None,
    )
    present, counts = np.unique(classes, return_counts=True)
    return {
      'input': str(path),
      **{kind: str(file) for kind, file in files.items()},
      'classes': [
        {
          'index': int(present[i]),
          'name': taxonomy.class_names[present[i]],
          'share': float(counts[i] / classes.size),
        }
        for i in np.argsort(-counts, kind='stable')
      ],
    }

  def write_samples(self, path: epath.Path) -> None:
    """Writes a sheet of evaluation images with predicted and true classes."""
    batch = next(iter(self.task.eval_data(_SAMPLES, 0, 1)))
    inputs = {name: value for name, value in batch.items() if name not in ('mask', 'skipped')}
    classes = jax.device_get(jax.jit(self.task.classes)(self.variables, inputs))
    samples = []
    for row in np.flatnonzero(batch['mask']):
      height, width = batch['label_size'][row]
      rows, columns = batch['image_size'][row]
      image = batch['image'][row, :rows, :columns]
      samples.append(
        pictures.Sample(
          image=data.denormalize(image, self.task.config.dataset),
          predicted=classes[row, :height, :width],
          true=batch['label'][row, :height, :width],
        )
      )
    taxonomy = self.task.taxonomy
    pictures.sheet(path, samples, taxonomy.class_names, taxonomy.palette)
