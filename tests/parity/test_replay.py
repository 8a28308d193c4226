"""Every recorded case under tests/reference, in both precisions."""

import functools
import pathlib

import pytest

from crossattn_jax.parity import bounds, cases, replay

REFERENCE = pathlib.Path(__file__).parents[1] / 'reference'
# Full-size models beyond one of each kind, and variations of a kind: minutes together.
SLOW = {
  'atfuse': {
    'atfuse_eval_128',
    'atfuse_eval_480x640',
    'atfuse_eval_odd_45x62',
    'atfuse_train_64x48',
    'atfuse_train_loss_32x40',
  },
  'crossformer': {
    'cls_large_224',
    'cls_pp_huge_224',
    'cls_pp_large_224',
    'cls_pp_small_224',
    'cls_small_224',
    'cls_tiny_224',
    'dense_pp_small_224x288',
    'dense_pp_small_seg_test_groups_256x320',
    'dense_small_96x160',
    'dense_small_global_lda_224x320',
    'op_attention_cls',
    'op_attention_cls_masked',
    'op_attention_dense',
    'op_block_acl',
    'op_block_adaptive_interval',
    'op_block_cpe',
    'op_block_group_clipped',
    'op_block_lda',
    'op_block_lda_no_mask',
    'op_block_lda_padded',
    'op_block_lda_padded_both_sides',
    'op_block_sda',
    'op_dense_block_acl',
    'op_dense_block_adaptive_interval',
    'op_dense_block_lda',
    'op_dense_block_sda',
    'op_dense_block_small_map',
    'op_dpb',
    'op_patch_embed_dense',
    'op_patch_merging',
    'op_stage_acl',
    'seg_fcn_aux_head',
    'seg_fpn_head',
    'seg_fpn_head_train',
    'seg_fpn_neck',
    'seg_semantic_fpn_mini',
    'seg_uper_head',
    'seg_uper_head_train',
    'seg_upernet_mini_train_losses',
  },
  'mmca': {
    'bert_tiny',
    'cross_pair',
    'mmca_default',
    'mmca_train_step',
    'phrase_cnn_unmasked',
    'saem_image_branch',
    'saem_image_branch_default',
    'similarity_nomask',
    'similarity_variant',
  },
  'mmvit': {
    'cross_block_nopool',
    'mmvit_base_224',
    'mmvit_base_audio',
    'mmvit_tiny_64x48',
    'mmvit_tiny_meanpool',
    'mmvit_tiny_separable_32x80',
    'mmvit_tiny_train',
    'mvit_block_plain_nocls',
    'mvit_block_scaled_nocls',
  },
  'ccnet': {
    'abn_eval',
    'aspp_module_train',
    'bottleneck_dilation4_grid2_eval',
    'bottleneck_stride2_downsample_train',
    'cca3d_branch_as_is',
    'cca3d_r2_t1_6x9',
    'cca_core_24x33',
    'cca_core_97x97',
    'cca_core_large_logits_10x14',
    'cca_r2_7x16',
    'cca_r2_single_column_6x1',
    'cca_r2_single_row_1x11',
    'cca_r3_5x12',
    'ccnet_r101_r0123',
    'ccnet_r101_r2_769',
    'ccnet_r50_r2_train',
    'deeplabv3_r101',
    'loss_ccl_all_branches',
    'loss_ccl_quadratic',
    'loss_dsn',
    'loss_ohem_all_kept',
    'loss_ohem_thresh',
    'multiscale_flip_33x49',
    'psp_module_train',
    'pspnet_r101',
    'rcca_module_r2_eval',
    'sliding_small_image',
    'stem_even_size',
    'train_steps_r2',
    'zoom_33x49',
  },
  'crossvit': {
    'crossvit_15_224',
    'crossvit_15_dagger_224',
    'crossvit_15_dagger_384',
    'crossvit_18_224',
    'crossvit_18_dagger_224',
    'crossvit_18_dagger_384',
    'crossvit_9_224',
    'crossvit_9_dagger_224',
    'crossvit_base_224',
    'crossvit_small_224',
    'crossvit_tiny_224',
    'crossvit_t2t_tiny',
    'crossvit_tiny_224_input_256x300',
    'crossvit_tiny_fusion_all_attention',
    'crossvit_tiny_fusion_pairwise',
    'op_multiscale_block_3branch',
    'timm_rect_240x120',
    'train_loss_tiny',
  },
  'biformer': {
    'attention_lepe',
    'attention_vanilla',
    'biformer_base_224',
    'biformer_small_224',
    'biformer_stl_224',
    'biformer_stl_nchw_224',
    'biformer_tiny_224',
    'biformer_tiny_224_train',
    'block_bra',
    'block_bra_layerscale_mlpdwconv',
    'block_conv',
    'block_lepe',
    'block_vanilla_nopos',
    'bra_nchw_basic',
    'bra_nhwc_autopad',
    'bra_nhwc_autopad_empty_windows',
    'bra_nhwc_basic',
    'bra_nhwc_kv_ada_avgpool',
    'bra_nhwc_kv_ada_maxpool',
    'bra_nhwc_kv_avgpool',
    'bra_nhwc_kv_maxpool',
    'bra_nhwc_qkdim',
    'bra_nhwc_qkv_only',
    'bra_nhwc_soft',
    'bra_nhwc_soft_diff',
    'bra_nhwc_topk1',
    'bra_nhwc_topk16',
    'bra_nhwc_topk_all',
    'bra_stage1_224',
    'bra_stage2_224',
    'bra_stage3_224',
    'bra_stage3_512x2048',
    'bra_stage3_800x1344_autopad',
    'det_backbone_shallow',
    'kv_gather',
    'loss_segmentation',
    'maxvit_stl_block_attention',
    'rrsda_cross_resolution',
    'seg_backbone_small',
    'semantic_fpn_shallow',
    'semantic_fpn_shallow_train',
    'stl_block_nchw',
    'topk_routing_diff',
    'upernet_head',
  },
  'swiftformer': {
    'agc_0p3',
    'op_additive_attention_2heads',
    'op_additive_attention_raw',
    'op_additive_attention_softmax',
    'op_conv_encoder_eval',
    'op_embedding_eval',
    'op_embedding_train',
    'op_encoder_block_eval',
    'op_encoder_block_no_layer_scale',
    'op_fpn_5_outputs',
    'op_local_representation_eval',
    'op_local_representation_train',
    'op_mlp_eval',
    'op_mlp_train',
    'op_semantic_fpn_eval',
    'op_stem_eval',
    'swiftformer_l1',
    'swiftformer_l1_features',
    'swiftformer_l3',
    'swiftformer_s',
    'swiftformer_xs',
    'swiftformer_xs_features_grad',
    'swiftformer_xs_train',
    'swiftformer_xs_v1_weights_ones',
    'teacher_regnet_bottleneck',
    'teacher_regnety_160',
    'train_loss_xs',
  },
}

# Exact in float64. In float32 rounding makes one activation of 2e-6 negative, in the first of three
# steps, which moves all gradients before it; test_ccnet.py shows that nothing else is amiss.
OUTSIDE_IN_FLOAT32 = {
  'ccnet/train_steps_r2': 'a rectifier on the other side of 0: delta_norm 5e-5, bound 1.3e-5'
}


def recorded_cases():
  for path in cases.find_manifests([REFERENCE]):
    system = path.parent.name
    marks = [pytest.mark.slow] if path.stem in SLOW.get(system, ()) else []
    yield pytest.param(path, id=f'{system}/{path.stem}', marks=marks)


@functools.lru_cache(maxsize=1)
def read_case(path):
  """Weights are generated once for both precisions."""
  return cases.read_case(path)


@pytest.mark.parametrize('path', list(recorded_cases()))
@pytest.mark.parametrize('precision', bounds.PRECISIONS)
def test_recorded_case_is_within_the_bound(path, precision):
  name = f'{path.parent.name}/{path.stem}'
  if precision == 'float32' and name in OUTSIDE_IN_FLOAT32:
    pytest.xfail(OUTSIDE_IN_FLOAT32[name])
  result = replay.replay_case(read_case(path), precision)
  assert result.rows
  assert result.passed, result.failures()
