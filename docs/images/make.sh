#!/usr/bin/env bash
# Makes the pictures of the README and the results in the notebooks again, by running what they
# show. Needs extras `test` and `torch`; an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD

samples_of() {
  workdir=$(mktemp -d)
  python main.py --config="configs/$1.py" --workdir="$workdir"
  cp "$workdir/predictions.png" "docs/images/$2.png"
}
samples_of crossvit_digits digits
samples_of biformer_digits biformer_digits
samples_of crossformer_digits crossformer_digits
samples_of swiftformer_digits swiftformer_digits
samples_of atfuse_shapes atfuse_shapes
samples_of mmca_shapes mmca_shapes
samples_of ccnet_shapes ccnet_shapes
samples_of semantic_fpn_shapes semantic_fpn_shapes
samples_of retinanet_shapes retinanet_shapes
samples_of mask_rcnn_shapes mask_rcnn_shapes
samples_of icafusion_shapes icafusion_shapes
python main.py --mode=predict --workdir="$workdir" --input=crossattn_jax/samples/night --output="$workdir/night"
cp "$workdir/night/0.png" docs/images/icafusion_attention.png
samples_of sketch_localizer_shapes sketch_localizer_shapes
python main.py --mode=predict --workdir="$workdir" --input=crossattn_jax/samples/shapes --output="$workdir/cup" \
  --config.predict.sketch=crossattn_jax/samples/sketches/cup.png
cp "$workdir/cup/0.png" docs/images/sketch_localizer_attention.png
samples_of mit_rooms mit_rooms
python main.py --mode=predict --workdir="$workdir" --input=crossattn_jax/samples/rooms --output="$workdir/room"
cp "$workdir/room/0.png" docs/images/mit_attention.png
python main.py --mode=label --workdir="$workdir"
python main.py --config=configs/minkunet_rooms.py:pseudo --workdir="$workdir/2" \
  --config.dataset.labels_dir="$workdir/labels"
cp "$workdir/2/predictions.png" docs/images/minkunet_rooms.png
# docs/images/mit_page.jpg is a screenshot of what `--mode=predict` of this run writes.
# Pages need them neither as large nor exact to the bit.
python - docs/images/{{retinanet,mask_rcnn,icafusion,sketch_localizer}_shapes,{mit,minkunet}_rooms} \
  docs/images/{icafusion,sketch_localizer,mit}_attention <<'END'
import pathlib, sys
from PIL import Image
for name in sys.argv[1:]:
  picture = Image.open(f'{name}.png').convert('RGB')
  picture.thumbnail((1200, 1200))
  picture.save(f'{name}.jpg', quality=80, optimize=True)
  pathlib.Path(f'{name}.png').unlink()
END

python -m crossattn_jax.parity compare crossvit_tiny_240 --against timm:crossvit_tiny_240 \
  --png docs/images/layer_errors.png

jupyter execute --inplace colabs/*.ipynb
