"""Cases of MIT with other arguments, sizes and modes than the recorded ones."""

import pathlib

import numpy as np
import pytest

from crossattn_jax.parity import adapters, arguments, cases
from crossattn_jax.parity.systems.mit import scenes as scenes_lib

REFERENCE = pathlib.Path(__file__).parents[2] / 'reference' / 'mit'


def test_scenes_are_batches_and_rows_come_back_as_they_were():
  rng = np.random.default_rng(0)
  coords = np.array([[scene, *cell] for scene in (1, 0) for cell in np.ndindex(3, 4, scene + 1)])
  coords = rng.permutation(coords).astype(np.int32)
  batch = scenes_lib.PaddedScenes(coords)
  tables = batch.tables()
  assert [int(level.is_cell.sum()) for level in tables[:2]] == [36, 8]
  assert tables[0].neighbours.shape == (2, 27, 24)
  padded = np.full((2, 24, 3), np.nan)
  for scene, rows in enumerate(batch.rows):
    padded[scene, : len(rows)] = coords[rows, 1:]
  np.testing.assert_array_equal(batch.join(padded, 0), coords[:, 1:])
  coarse = np.unique(coords // [1, 2, 2, 2] * [1, 2, 2, 2], axis=0)
  np.testing.assert_array_equal(batch.coords(1), coarse)
  ids, counts, position = batch.supervoxels([np.zeros(12, int), np.repeat([0, 3], 12)])
  assert (ids[0] == [0] * 12 + [-1] * 12).all()
  assert counts.tolist() == [1, 4]
  second = coords[batch.rows[1], 1:]
  np.testing.assert_allclose(position[1, [0, 3]], [second[:12].mean(0), second[12:].mean(0)])
  assert not position[1, 1:3].any()


def test_weights_have_the_scale_of_the_case(vary, compute):
  log = []
  for scale in (None, 0.9):
    outputs, _ = compute(vary('mit/op_cross_attention', {'qk_scale': scale}))
    log.append(np.log(outputs['weights']))
  # Scores but for what the softmax takes off.
  plain, scaled = (x - x.mean(axis=-1, keepdims=True) for x in log)
  quotient = scaled / plain
  np.testing.assert_allclose(quotient, quotient.flat[0], rtol=1e-9)
  assert quotient.flat[0] > 1


@pytest.mark.extended
def test_attention_honours_widths_heads_and_classes(vary, compute):
  """Of another width than the tokens, by the state's shapes; skipping none is plain attention."""
  sizes = {'q_map.weight': (12, 24), 'k_map.weight': (12, 24), 'v_map.weight': (12, 24)}
  sizes |= {'proj.weight': (12, 12), 'proj.bias': (12,)}
  changes = {'out_dim': 12, 'num_heads': 2, 'num_classes': 0}
  inputs = {'q': (1, 3, 24), 'v': (1, 5, 24)}
  manifest = vary('mit/op_cross_skip_cls_attention', changes, inputs=inputs, state=sizes)
  changes.pop('num_classes')
  other = vary('mit/op_cross_attention', changes, inputs=inputs, state=sizes)
  plain, _ = compute(other | {'seed': manifest['seed']})
  outputs, _ = compute(manifest)
  assert outputs['y'].shape == (1, 3, 12)
  np.testing.assert_allclose(outputs['y'], plain['y'], rtol=1e-10)


@pytest.mark.extended
def test_the_decoder_honours_its_depth_and_classes(vary, compute):
  depth = 3
  dropped = 'blocks.3.'
  manifest = vary(
    'mit/op_interlaced_decoder',
    {'depth': depth, 'num_classes': 7},
    inputs={'view_tokens': (2, 9, 96), 'voxel_tokens': (2, 12, 96)},
    without=[dropped],
  )
  outputs, _ = compute(manifest)
  assert outputs['cls_logits_2'].shape == (2, 7, 7)
  assert 'weights_3' not in outputs
  assert outputs['weights_1'].shape == (2, 4, 12, 9)
  mean = outputs['weights_0'][..., :7, :7].mean(axis=1)
  np.testing.assert_allclose(outputs['cls_logits_0'], mean, rtol=1e-10)


@pytest.mark.extended
def test_the_position_mlp_honours_its_widths(vary, compute):
  sizes = {'layers.0.weight': (5, 3), 'layers.0.bias': (5,)}
  sizes |= {'layers.1.weight': (4, 5), 'layers.1.bias': (4,)}
  manifest = vary(
    'mit/op_pos_mlp',
    {'hidden_dim': 5, 'output_dim': 4, 'num_layers': 2},
    inputs={'xyz': (6, 3)},
    state=sizes,
    without=['layers.2'],
  )
  assert compute(manifest)[0]['y'].shape == (6, 4)


@pytest.mark.extended
def test_heads_have_as_many_classes_as_their_weights(vary, compute):
  sizes = {f'cls_head_{d}d.weight': (6, 96, 1) for d in (2, 3)}
  sizes |= {f'cls_head_{d}d.bias': (6,) for d in (2, 3)}
  inputs = {'pooled_feat': (4, 96), 'voxel_tokens': (1, 10, 96), 'view_tokens': (3, 96)}
  outputs, _ = compute(vary('mit/op_cam_heads', inputs=inputs, state=sizes))
  assert outputs['cam3d'].shape == outputs['cam3d_on_attn'].shape == (1, 6, 4)
  np.testing.assert_allclose(outputs['cam2d_mix'], outputs['cam2d'].max(axis=2))
  np.testing.assert_allclose(outputs['cam3d_avg'], outputs['cam3d'].mean(axis=2))


def test_supervoxels_without_cells_are_zero(vary, compute):
  manifest = vary('mit/op_supervoxel_pool', inputs={'feats': (5, 2)})
  outputs, _ = compute(manifest, ids=np.array([0, 3, 3, 0, 3]))
  assert outputs['empty'].tolist() == [False, True, True, False]
  assert not outputs['pooled'][1:3].any()


@pytest.mark.parametrize(
  ('case', 'changes', 'mode', 'message'),
  [
    ('op_encoder_official', {'drop': 0.1}, 'train', 'drop is 0.1; in training mode only 0'),
    ('mit_train_step', {'layers_2d': 34}, 'eval', 'layers_2d is 34; known are 50 and 101'),
    ('mit_train_step', {'arch_3d': 'MinkUNet50'}, 'eval', "arch_3d is 'MinkUNet50', which no"),
    ('mit_train_step', {'embed_dim': 64}, 'eval', 'embed_dim is 64; its adapter replays only 96'),
    ('mit_3d_only', {'is_cls': True}, 'eval', 'is_cls is True'),
  ],
)
def test_what_cannot_be_honoured_is_refused(vary, case, changes, mode, message):
  with pytest.raises(arguments.ArgumentError, match=message):
    adapters.find_adapter(vary(f'mit/{case}', changes, mode=mode))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('case', 'changes', 'without'),
  [
    ('mit_3d_only', {'encoder': False, 'pos_emb': False}, ('encoder', 'cls_', 'coord_emb')),
    ('mit_3d_only', {'encoder': False, 'pos_emb': False, 'overseg_pool': False, 'pool': 'max'},
     ('encoder', 'cls_', 'coord_emb')),
    ('mit_3d_only', {'pos_emb': False, 'feat_smooth': False}, ('cls_pos', 'coord_emb')),
    ('mit_2d_only', {'use_attn': False}, ('encoder', 'cls_', 'pos_emb_3d')),
    ('mit_2d_only', {'depth': 2}, ('encoder.blocks.2',)),
    ('mit_train_step', {'cam_on_attn': True, 'pool': 'mix', 'is_pair_loss': False}, ()),
  ],
)  # fmt: skip
def test_models_are_built_of_other_arguments(vary, case, changes, without):
  adapter = adapters.find_adapter(vary(f'mit/{case}', changes, without=without))
  assert adapter.mapping.entries


def test_sparse_layers_honour_their_bias(vary, compute):
  for case in ('op_sparse_conv_k3', 'op_sparse_down_k2s2', 'op_sparse_up_k2s2'):
    with np.load(REFERENCE / f'{case}.npz') as arrays:
      coords = arrays['input/coords']
    before, _ = compute(vary(f'mit/{case}'), coords=coords)
    manifest = vary(f'mit/{case}', {'bias': True})
    width = manifest['constructor']['out_channels']
    manifest['state'].append(
      {'key': 'bias', 'shape': [1, width], 'kind': 'param', 'mean': 3.0, 'std': 0.0, 'abs': False}
    )
    after, _ = compute(manifest, coords=coords)
    np.testing.assert_allclose(after['y'], before['y'] + 3)


def test_even_windows_of_a_sparse_convolution_start_at_the_cell(vary, compute):
  """As a dense correlation with zeros between the cells says."""
  size, rng = 2, np.random.RandomState(0)
  cells = np.unique(rng.randint(-2, 3, (40, 3)), axis=0)
  coords = rng.permutation(np.pad(cells, ((0, 0), (1, 0)))).astype(np.int32)
  manifest = vary(
    'mit/op_sparse_conv_k3',
    {'kernel_size': size},
    inputs={'feats': (len(coords), 4)},
    state={'kernel': (size**3, 4, 6)},
  )
  outputs, _ = compute(manifest, coords=coords)
  case = cases.Case(pathlib.Path(), manifest | {'inputs': {}}, {}, {})
  entry = manifest['inputs']['feats']
  feats = cases.generate(
    manifest['seed'], 'input/feats', entry['shape'],
    mean=entry['mean'], std=entry['std'], abs=entry.get('abs', False),
  ).astype(np.float64)  # fmt: skip
  grid = np.zeros((8, 8, 8, 4))
  grid[tuple(coords[:, 1:].T + 2)] = feats
  kernel = case.weights['kernel'].astype(np.float64)
  expected = 0
  for j, (z, y, x) in enumerate(np.ndindex(size, size, size)):
    expected = expected + grid[tuple(coords[:, 1:].T + 2 + [[x], [y], [z]])] @ kernel[j]
  np.testing.assert_allclose(outputs['y'], expected, rtol=1e-10, atol=1e-12)
