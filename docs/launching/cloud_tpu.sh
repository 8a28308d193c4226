#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it, waits, installs, starts one process on every host.
# Usage: PROJECT=... ZONE=... BUCKET=... bash cloud_tpu.sh
set -euo pipefail

: "${PROJECT:?the Google Cloud project}" "${ZONE:?such as us-west4-a}" "${BUCKET:?of the run, such as gs://my-runs}"
NAME=${NAME:-crossattn}
ACCELERATOR=${ACCELERATOR:-v5litepod-64}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SOURCE=${SOURCE:?where pip finds the library: git+https://... or the address of a wheel}
CONFIG=${CONFIG:-crossvit_imagenet:crossvit_small_240}
tpu="gcloud compute tpus --project=$PROJECT"

# 1. Asks for the slice; --spot in place of --guaranteed costs less and may be taken away.
$tpu queued-resources create "$NAME" --zone="$ZONE" --node-id="$NAME" \
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" --guaranteed

# 2. Waits until it is there.
until [ "$($tpu queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)')" = ACTIVE ]; do
  sleep 30
done

everywhere() {
  $tpu tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# 3. Installs the same on every host.
everywhere "python3 -m venv ~/venv && ~/venv/bin/pip install --quiet 'crossattn_jax[tpu] @ $SOURCE'"

# 4. Trains. It goes on when this terminal closes; the same line continues a run that was stopped.
everywhere "nohup ~/venv/bin/crossattn train --multihost --config=$CONFIG --workdir=$BUCKET/$NAME \
  --config.dataset.data_dir=$BUCKET/tensorflow_datasets > ~/train.log 2>&1 < /dev/null &"

# 5. What process 0 says.
$tpu tpu-vm ssh "$NAME" --zone="$ZONE" --worker=0 --command='tail -f ~/train.log'

# To stop with the state saved: everywhere 'pkill -TERM -f "crossattn train"'
# To give the slice back: $tpu queued-resources delete "$NAME" --zone="$ZONE" --force
