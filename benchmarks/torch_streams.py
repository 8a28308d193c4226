"""Training streams in PyTorch's terms: the other side of `benchmarks.input_streams`.

Datasets on torchvision's operations and Pillow, read by a `DataLoader` on this thread. They draw
what this library's defaults draw: scales, places, mirror images, colours.
"""

import io
import json
import pathlib
import random

import numpy as np
from PIL import Image
from scipy.io import wavfile
import torch
from torch.nn import functional
from torch.utils import data
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LINEAR, NEAREST = transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.NEAREST
to_levels = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
normalized = v2.Compose([to_levels, v2.Normalize(MEAN, STD)])


def opened(path, mode='RGB'):
  """An image file, decoded."""
  return Image.open(io.BytesIO(pathlib.Path(path).read_bytes())).convert(mode)


class Photos(data.Dataset):
  """The photos of a folder."""

  def __init__(self, folder):
    self.paths = sorted(folder.glob('*.jpg'))

  def __len__(self):
    return len(self.paths)


class Segmentation(Photos):
  """Scales, pads, crops and mirrors an image and its mask."""

  crop, scales = 769, [(7 + i) / 10 for i in range(15)]

  def __init__(self, folder):
    super().__init__(folder / 'images' / 'train')
    self.masks = sorted((folder / 'masks' / 'train').glob('*.png'))

  def __getitem__(self, index):
    image, mask = opened(self.paths[index]), opened(self.masks[index], 'L')
    scale = random.choice(self.scales)
    size = [round(side * scale) for side in image.size[::-1]]
    image = v2.functional.resize(image, size, LINEAR)
    mask = v2.functional.resize(mask, size, NEAREST)
    margins = [0, 0, *(max(self.crop - side, 0) for side in image.size)]
    if any(margins):
      image = v2.functional.pad(image, margins, fill=[round(255 * level) for level in MEAN])
      mask = v2.functional.pad(mask, margins, fill=255)
    place = transforms.RandomCrop.get_params(image, (self.crop, self.crop))
    image, mask = v2.functional.crop(image, *place), v2.functional.crop(mask, *place)
    if random.random() < 0.5:
      image, mask = v2.functional.hflip(image), v2.functional.hflip(mask)
    return {'image': normalized(image), 'label': torch.from_numpy(np.array(mask)).int()}


class Detection(Photos):
  """Resizes and mirrors a photo with its boxes, and pads both."""

  canvas, most_boxes = (800, 1344), 100
  resize = v2.RandomShortestSize(800, 1333)
  mirror = v2.RandomHorizontalFlip()

  def __init__(self, folder):
    super().__init__(folder / 'train')
    content = json.loads((folder / 'annotations' / 'instances_train.json').read_text())
    self.objects = [[] for _ in self.paths]
    for each in content['annotations']:
      self.objects[each['image_id']].append((*each['bbox'], each['category_id'] - 1))

  def __getitem__(self, index):
    image = opened(self.paths[index])
    *boxes, labels = torch.tensor(self.objects[index]).T
    boxes = tv_tensors.BoundingBoxes(
      torch.stack(boxes, 1).float(), format='XYWH', canvas_size=image.size[::-1]
    )
    image, boxes = self.mirror(*self.resized(image, boxes))
    boxes = v2.functional.convert_bounding_box_format(boxes, new_format='XYXY')
    image = normalized(image)
    size, margin = torch.tensor(image.shape[1:]), self.most_boxes - len(boxes)
    bottom, right = (side - own for side, own in zip(self.canvas, image.shape[1:], strict=True))
    return {
      'image': functional.pad(torch.Tensor(image), (0, right, 0, bottom)),
      'image_size': size,
      'boxes': functional.pad(torch.Tensor(boxes), (0, 0, 0, margin)),
      'labels': functional.pad(labels.int(), (0, margin), value=-1),
    }

  def resized(self, image, boxes):
    """At the size that the network sees."""
    return self.resize(image, boxes)


class SketchLocalization(Detection):
  """Photos in DETR's augmentation, and a drawing of one of the classes that each shows."""

  canvas = (800, 1328)
  resize = v2.RandomShortestSize(list(range(480, 801, 32)), 1328)
  first = v2.RandomShortestSize([400, 500, 600])

  def __init__(self, folder):
    super().__init__(folder / 'photos')
    folders = sorted((folder / 'drawn' / 'sketches').iterdir())
    self.drawings = [sorted(each.glob('*.png')) for each in folders]

  def resized(self, image, boxes):
    """A part of it in half of all cases."""
    if random.random() < 0.5:
      image, boxes = self.first(image, boxes)
      width, height = image.size
      part = [random.randint(min(384, side), min(600, side)) for side in (height, width)]
      part.sort(reverse=height > width)
      image, boxes = v2.RandomCrop(part)(image, boxes)
    return self.resize(image, boxes)

  def __getitem__(self, index):
    path = random.choice(self.drawings[random.choice(self.objects[index])[-1]])
    drawing = v2.functional.resize(opened(path, 'L'), [224, 224], LINEAR)
    return {**super().__getitem__(index), 'sketches': normalized(drawing.convert('RGB'))[None]}


class Pairs(Photos):
  """Visible and infrared photos."""

  def __init__(self, folder):
    super().__init__(folder / 'visible' / 'train')
    self.infrared = sorted((folder / 'infrared' / 'train').glob('*.jpg'))


class ImageFusion(Pairs):
  """Cuts the same place out of the luma of both."""

  def __len__(self):
    return 20 * len(self.paths)

  def __getitem__(self, index):
    index %= len(self.paths)
    images = [opened(paths[index], 'L') for paths in (self.paths, self.infrared)]
    place = transforms.RandomCrop.get_params(images[0], (128, 128))
    images = [v2.functional.pil_to_tensor(v2.functional.crop(x, *place)) for x in images]
    return dict(zip(('visible', 'infrared'), (x.float() for x in images), strict=True))


class PairedDetection(Pairs):
  """YOLOv5's mosaics of four pairs, warped, colours apart, mirrored."""

  side, most_boxes = 640, 300
  colors = v2.ColorJitter(brightness=0.4, saturation=0.7, hue=0.0075)

  def __init__(self, folder):
    super().__init__(folder)
    labels = sorted((folder / 'labels' / 'train').glob('*.txt'))
    self.objects = [np.loadtxt(path, ndmin=2) for path in labels]

  def __getitem__(self, index):
    side, chosen = self.side, [index, *random.choices(range(len(self.paths)), k=3)]
    x, y = (int(random.uniform(side / 2, 3 * side / 2)) for _ in range(2))
    scale = random.uniform(0.5, 1.5)
    move = [random.uniform(0.4, 0.6) * side - scale * side for _ in range(2)]
    mirrored = random.random() < 0.5
    images, boxes = [], []
    for paths, gray in ((self.paths, False), (self.infrared, True)):
      mode = 'L' if gray else 'RGB'
      canvas = Image.new(mode, (2 * side, 2 * side), 114 if gray else (114, 114, 114))
      for place, number in enumerate(chosen):
        image = opened(paths[number], mode)
        factor = side / max(image.size)
        image = image.resize([round(factor * length) for length in image.size], 2)
        corner = x - image.width * (place % 2 == 0), y - image.height * (place < 2)
        canvas.paste(image, corner)
        if gray:
          centers = self.objects[number][:, 1:3] * image.size + corner
          halves = self.objects[number][:, 3:] * image.size / 2
          boxes.append(np.concatenate([centers - halves, centers + halves], 1))
      matrix = (1 / scale, 0, -move[0] / scale, 0, 1 / scale, -move[1] / scale)
      image = canvas.transform((side, side), 0, matrix, 2, fillcolor=114 if gray else (114,) * 3)
      image = self.colors(image).convert('RGB')
      images.append(to_levels(v2.functional.hflip(image) if mirrored else image))
    boxes = np.concatenate(boxes).clip(0, 2 * side) * scale + np.tile(move, 2)
    boxes = boxes.clip(0, side)
    if mirrored:
      boxes[:, [0, 2]] = side - boxes[:, [2, 0]]
    labels = np.concatenate([self.objects[number][:, 0] for number in chosen])
    shown = (boxes[:, 2:] - boxes[:, :2] > 2).all(1)
    boxes, labels = torch.tensor(boxes[shown]), torch.tensor(labels[shown])
    margin = self.most_boxes - len(boxes)
    return {
      'rgb': images[0],
      'thermal': images[1],
      'boxes': functional.pad(boxes.float(), (0, 0, 0, margin)),
      'labels': functional.pad(labels.int(), (0, margin), value=-1),
    }


class AudioClassification(data.Dataset):
  """Mixed waveforms, log-mel spectrograms as torchaudio's `kaldi.fbank` has them, masks."""

  def __init__(self, folder):
    self.paths = sorted(folder.glob('*.wav'))
    # Filters of other values cost the same.
    self.bank = torch.rand(256, 128)
    self.window = torch.hann_window(400, periodic=False)

  def __len__(self):
    return len(self.paths)

  def waveform(self, index):
    """Of a file, without its mean."""
    rate, samples = wavfile.read(self.paths[index])
    assert rate == 16_000
    samples = torch.from_numpy(samples.astype(np.float32) / 32768)
    return samples - samples.mean()

  def __getitem__(self, index):
    waveform, label = self.waveform(index), torch.zeros(8)
    label[index % 8] = 1
    if random.random() < 0.5:
      other, weight = random.randrange(len(self)), random.betavariate(10, 10)
      waveform = weight * waveform + (1 - weight) * self.waveform(other)
      label = weight * label
      label[other % 8] += 1 - weight
    frames = waveform.unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    before = functional.pad(frames[:, None], (1, 0), mode='replicate')[:, 0, :-1]
    frames = (frames - 0.97 * before) * self.window
    power = torch.fft.rfft(frames, 512)[:, :256].abs().square()
    image = (power @ self.bank).clamp(min=2.0**-23).log()
    image = functional.pad(image, (0, 0, 0, 1024 - len(image)))
    for axis, most in enumerate((192, 48)):
      width = random.randint(0, most)
      start = random.randint(0, image.shape[axis] - width)
      image.narrow(axis, start, width).zero_()
    return {'image': ((image + 4.2677393) / (2 * 4.5689974)).T[None], 'label': label}


DATASETS = {
  'segmentation': Segmentation,
  'detection': Detection,
  'paired_detection': PairedDetection,
  'image_fusion': ImageFusion,
  'sketch_localization': SketchLocalization,
  'audio_classification': AudioClassification,
}


def batches(dataset, batch_size):
  """Endless batches, made on this thread."""
  torch.set_num_threads(1)
  torch.manual_seed(0)
  random.seed(0)
  while True:
    yield from data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
