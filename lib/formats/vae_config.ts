import * as v from 'valibot'
import { badFormat } from '../errors.js'
import { parseFile } from './dit_config.js'
import type { VaeConfig } from './types.js'

const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1 << 16))
const all = (type: string) => v.nullish(v.array(v.literal(type)))

const schema = v.looseObject({
  _class_name: v.nullish(v.literal('AutoencoderKL')),
  in_channels: v.nullish(positive, 3),
  out_channels: v.nullish(positive, 3),
  latent_channels: v.nullish(positive, 4),
  block_out_channels: v.pipe(v.array(positive), v.minLength(1), v.maxLength(16)),
  layers_per_block: v.nullish(v.pipe(positive, v.maxValue(64)), 1),
  norm_num_groups: v.nullish(positive, 32),
  scaling_factor: v.nullish(v.pipe(v.number(), v.finite(), v.gtValue(0)), 0.18215),
  shift_factor: v.nullish(v.pipe(v.number(), v.finite()), 0),
  use_quant_conv: v.nullish(v.boolean(), true),
  use_post_quant_conv: v.nullish(v.boolean(), true),
  mid_block_add_attention: v.nullish(v.boolean(), true),
  act_fn: v.nullish(v.literal('silu')),
  down_block_types: all('DownEncoderBlock2D'),
  up_block_types: all('UpDecoderBlock2D'),
  latents_mean: v.nullish(v.null()),
  latents_std: v.nullish(v.null()),
})

/**
 * Reads the config.json of diffusers' AutoencoderKL.
 *
 * Throws ERR_DIT_FORMAT when a field has a wrong type or describes an autoencoder that is none of
 * these: other block types or activations, latents normalised by channel.
 */
export function parseVaeJson(json: unknown, file: string): VaeConfig {
  const config = parseFile(schema, json, file)
  return checkVaeConfig(
    {
      inChannels: config.in_channels,
      outChannels: config.out_channels,
      latentChannels: config.latent_channels,
      blockOutChannels: config.block_out_channels,
      layersPerBlock: config.layers_per_block,
      groups: config.norm_num_groups,
      scalingFactor: config.scaling_factor,
      shiftFactor: config.shift_factor,
      useQuantConv: config.use_quant_conv,
      usePostQuantConv: config.use_post_quant_conv,
      midBlockAddAttention: config.mid_block_add_attention,
    },
    file,
  )
}

/** The configuration of a VAE that has no config.json: the Stable Diffusion VAEs' groups and scale. */
export function inferVaeConfig(
  shapes: Omit<VaeConfig, 'groups' | 'scalingFactor' | 'shiftFactor'>,
  file: string,
): VaeConfig {
  return checkVaeConfig({ ...shapes, groups: 32, scalingFactor: 0.18215, shiftFactor: 0 }, file)
}

function checkVaeConfig(config: VaeConfig, file: string): VaeConfig {
  const odd = config.blockOutChannels.find((width) => width % config.groups !== 0)
  if (odd === undefined) return config
  throw badFormat(
    file,
    `${odd} channels cannot be normalised in ${config.groups} groups. Put a config.json with the right ` +
      'norm_num_groups beside the weights',
  )
}
