// What `dit.save` writes: the files of a diffusers pipeline, or one safetensors file that carries its
// own configuration. Everything but the values of the tensors.

import { diffusersNaming, ditTensors, officialNaming } from './dit_names.js'
import { layoutTensors, type SavedTensor } from './names.js'
import type { DiTConfig, ScheduleConfig, VaeConfig } from './types.js'
import { modernVaeNaming, vaeTensors } from './vae_names.js'

/** What is saved beside the weights. */
export interface SavedModel {
  readonly config: DiTConfig
  readonly schedule: ScheduleConfig
  readonly vae?: VaeConfig
  readonly id2label?: Record<number, string>
}

/** The tensors of transformer/diffusion_pytorch_model.safetensors, from the canonical ones. */
export function diffusersTensors(config: DiTConfig): SavedTensor[] {
  return layoutTensors(ditTensors(config), diffusersNaming(config.depth))
}

/** The tensors of a file with official names, from the canonical ones. */
export function officialTensors(config: DiTConfig): SavedTensor[] {
  return layoutTensors(ditTensors(config), officialNaming)
}

/** The tensors of vae/diffusion_pytorch_model.safetensors, from the canonical ones. */
export function diffusersVaeTensors(config: VaeConfig): SavedTensor[] {
  return layoutTensors(vaeTensors(config), modernVaeNaming)
}

/**
 * The JSON files of a diffusers pipeline, by their path in its folder. diffusers itself can load a
 * model with square latents, a null class and an MLP four times as wide; others only this package.
 *
 * @example
 * for (const [file, json] of Object.entries(diffusersConfigs({ config, schedule }))) {
 *   await writeFile(path.join(folder, file), JSON.stringify(json, null, 2))
 * }
 */
export function diffusersConfigs(model: SavedModel): Record<string, object> {
  const { config, schedule, vae, id2label } = model
  const [height, width] = config.latentSize
  const files: Record<string, object> = {
    'model_index.json': {
      _class_name: 'DiTPipeline',
      ...(id2label === undefined ? {} : { id2label }),
      scheduler: ['diffusers', 'DDIMScheduler'],
      transformer: ['diffusers', 'Transformer2DModel'],
      ...(vae === undefined ? {} : { vae: ['diffusers', 'AutoencoderKL'] }),
    },
    'scheduler/scheduler_config.json': {
      _class_name: 'DDIMScheduler',
      beta_end: schedule.betaEnd,
      beta_schedule: schedule.kind === 'linear' ? 'linear' : 'squaredcos_cap_v2',
      beta_start: schedule.betaStart,
      clip_sample: false,
      num_train_timesteps: schedule.steps,
      prediction_type: 'epsilon',
      set_alpha_to_one: true,
      steps_offset: 0,
      trained_betas: null,
    },
    'transformer/config.json': {
      _class_name: 'Transformer2DModel',
      activation_fn: 'gelu-approximate',
      attention_bias: true,
      attention_head_dim: config.hidden / config.heads,
      in_channels: config.channels,
      norm_elementwise_affine: false,
      norm_type: 'ada_norm_zero',
      num_attention_heads: config.heads,
      num_embeds_ada_norm: config.numClasses,
      num_layers: config.depth,
      out_channels: config.channels * (config.learnSigma ? 2 : 1),
      patch_size: config.patchSize,
      sample_size: height === width ? height : [height, width],
    },
  }
  if (vae !== undefined) {
    const levels = vae.blockOutChannels.length
    files['vae/config.json'] = {
      _class_name: 'AutoencoderKL',
      act_fn: 'silu',
      block_out_channels: vae.blockOutChannels,
      down_block_types: new Array(levels).fill('DownEncoderBlock2D'),
      in_channels: vae.inChannels,
      latent_channels: vae.latentChannels,
      layers_per_block: vae.layersPerBlock,
      mid_block_add_attention: vae.midBlockAddAttention,
      norm_num_groups: vae.groups,
      out_channels: vae.outChannels,
      scaling_factor: vae.scalingFactor,
      shift_factor: vae.shiftFactor === 0 ? null : vae.shiftFactor,
      up_block_types: new Array(levels).fill('UpDecoderBlock2D'),
      use_post_quant_conv: vae.usePostQuantConv,
      use_quant_conv: vae.useQuantConv,
    }
  }
  return files
}

/** This package's own configuration, as config.json or in a safetensors file's metadata. */
export function ownConfig({ config, schedule, id2label }: SavedModel): object {
  return { ...config, schedule, ...(id2label === undefined ? {} : { id2label }) }
}
