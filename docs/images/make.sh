#!/usr/bin/env bash
# Makes the pictures of the README and the results in the notebooks again, by running what they
# show. Needs extras `test` and `torch`; half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD

samples_of() {
  local workdir
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
for config in retinanet_shapes mask_rcnn_shapes; do
  samples_of $config $config
  # Textures in all colours take megabytes.
  python -c "import sys; from PIL import Image; \
    image = Image.open(sys.argv[1]).convert('RGB'); \
    image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS); \
    image.quantize(256).save(sys.argv[1], optimize=True)" \
    docs/images/$config.png
done

python -m crossattn_jax.parity compare crossvit_tiny_240 --against timm:crossvit_tiny_240 \
  --png docs/images/layer_errors.png

jupyter execute --inplace colabs/*.ipynb
