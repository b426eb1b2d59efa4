// The tensors of diffusers' AutoencoderKL. Its present names are canonical here; files from before
// diffusers 0.18 (the sd-vae-ft-* ones among them) name the attention's projections otherwise.

import { badFormat, show } from '../errors.js'
import { countNumbered, type Naming } from './names.js'
import type { TensorMap } from './tensor.js'
import type { TensorSpec, VaeConfig } from './types.js'

/** The tensors of an AutoencoderKL: encoder, decoder, quant_conv, post_quant_conv. */
export function vaeTensors(config: VaeConfig): TensorSpec[] {
  const widths = config.blockOutChannels
  const first = widths[0] ?? 0
  const last = widths.at(-1) ?? 0
  const moments = 2 * config.latentChannels
  const middle = (name: string) => [
    ...resnet(`${name}.resnets.0`, last, last),
    ...(config.midBlockAddAttention ? attention(`${name}.attentions.0`, last) : []),
    ...resnet(`${name}.resnets.1`, last, last),
  ]
  const level = (name: string, from: number, to: number, count: number) =>
    Array.from({ length: count }, (_, j) =>
      resnet(`${name}.resnets.${j}`, j > 0 ? to : from, to),
    ).flat()
  const down = widths.flatMap((width, i) => [
    ...level(`encoder.down_blocks.${i}`, widths[i - 1] ?? first, width, config.layersPerBlock),
    ...(i + 1 < widths.length
      ? conv(`encoder.down_blocks.${i}.downsamplers.0.conv`, width, width, 3)
      : []),
  ])
  const up = widths
    .toReversed()
    .flatMap((width, i, reversed) => [
      ...level(`decoder.up_blocks.${i}`, reversed[i - 1] ?? last, width, config.layersPerBlock + 1),
      ...(i + 1 < reversed.length
        ? conv(`decoder.up_blocks.${i}.upsamplers.0.conv`, width, width, 3)
        : []),
    ])
  return [
    ...conv('encoder.conv_in', first, config.inChannels, 3),
    ...down,
    ...middle('encoder.mid_block'),
    ...affine('encoder.conv_norm_out', last),
    ...conv('encoder.conv_out', moments, last, 3),
    ...(config.useQuantConv ? conv('quant_conv', moments, moments, 1) : []),
    ...(config.usePostQuantConv
      ? conv('post_quant_conv', config.latentChannels, config.latentChannels, 1)
      : []),
    ...conv('decoder.conv_in', last, config.latentChannels, 3),
    ...middle('decoder.mid_block'),
    ...up,
    ...affine('decoder.conv_norm_out', first),
    ...conv('decoder.conv_out', config.outChannels, first, 3),
  ]
}

function conv(name: string, to: number, from: number, size: number): TensorSpec[] {
  return [
    { name: `${name}.weight`, shape: [to, from, size, size] },
    { name: `${name}.bias`, shape: [to] },
  ]
}

function affine(name: string, width: number): TensorSpec[] {
  return [
    { name: `${name}.weight`, shape: [width] },
    { name: `${name}.bias`, shape: [width] },
  ]
}

function resnet(name: string, from: number, to: number): TensorSpec[] {
  return [
    ...affine(`${name}.norm1`, from),
    ...conv(`${name}.conv1`, to, from, 3),
    ...affine(`${name}.norm2`, to),
    ...conv(`${name}.conv2`, to, to, 3),
    ...(from === to ? [] : conv(`${name}.conv_shortcut`, to, from, 1)),
  ]
}

function attention(name: string, width: number): TensorSpec[] {
  const projections = ['to_q', 'to_k', 'to_v', 'to_out.0']
  return [
    ...affine(`${name}.group_norm`, width),
    ...projections.flatMap((projection) => [
      { name: `${name}.${projection}.weight`, shape: [width, width] },
      { name: `${name}.${projection}.bias`, shape: [width] },
    ]),
  ]
}

const legacyProjections: Record<string, string> = {
  to_q: 'query',
  to_k: 'key',
  to_v: 'value',
  'to_out.0': 'proj_attn',
}

export const modernVaeNaming: Naming = { kind: 'AutoencoderKL', parts: (name) => [name] }
const legacyVaeNaming: Naming = {
  kind: 'AutoencoderKL, query/key/value',
  parts: (name) => [
    name.replace(
      /(\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\./,
      (_, start: string, projection: string) => `${start}${legacyProjections[projection]}.`,
    ),
  ],
}

export function vaeNaming(tensors: TensorMap): Naming {
  const legacy = tensors.has('decoder.mid_block.attentions.0.query.weight')
  return legacy ? legacyVaeNaming : modernVaeNaming
}

/** Projections that a file has as 1×1 convolutions, [C, C, 1, 1], as the matrices they are. */
export function flattenProjections(tensors: TensorMap): TensorMap {
  const flat: TensorMap = new Map()
  for (const [name, part] of tensors) {
    const projection =
      /\.attentions\.0\.(to_[qkv]|to_out\.0|query|key|value|proj_attn)\.weight$/.test(name)
    const isConv = part.shape.length === 4 && part.shape[2] === 1 && part.shape[3] === 1
    flat.set(
      name,
      projection && isConv
        ? { ...part, shape: part.shape.slice(0, 2), strides: part.strides.slice(0, 2) }
        : part,
    )
  }
  return flat
}

/** What a training checkpoint has beside the autoencoder: its loss with the discriminator; counters. */
export const ignoredInVae = [/^loss\./, /^discriminator\./, /(^|\.)num_batches_tracked$/]

/**
 * Reads the sizes off the tensors' shapes. The groups of the norms do not show in them.
 *
 * Throws ERR_DIT_FORMAT when the tensors are not an AutoencoderKL's, or too few to tell.
 */
export function vaeShapes(
  file: string,
  tensors: TensorMap,
): Omit<VaeConfig, 'groups' | 'scalingFactor' | 'shiftFactor'> {
  const dimension = (name: string, index: number): number => {
    const size = tensors.get(name)?.shape[index]
    if (size === undefined || size === 0) {
      const names = [...tensors.keys()].slice(0, 5).map(show).join(', ')
      throw badFormat(
        file,
        `no AutoencoderKL: ${name} is missing or has no size; its tensors are ${names}, …`,
      )
    }
    return size
  }
  const levels = countNumbered(tensors.keys(), 'encoder.down_blocks.')
  const layers = countNumbered(tensors.keys(), 'encoder.down_blocks.0.resnets.')
  if (levels * layers > tensors.size) throw badFormat(file, 'it names blocks that it does not have')
  return {
    inChannels: dimension('encoder.conv_in.weight', 1),
    outChannels: dimension('decoder.conv_out.weight', 0),
    latentChannels: dimension('decoder.conv_in.weight', 1),
    blockOutChannels: Array.from({ length: levels }, (_, i) =>
      dimension(`encoder.down_blocks.${i}.resnets.0.conv1.weight`, 0),
    ),
    layersPerBlock: layers,
    useQuantConv: tensors.has('quant_conv.weight'),
    usePostQuantConv: tensors.has('post_quant_conv.weight'),
    midBlockAddAttention: tensors.has('decoder.mid_block.attentions.0.group_norm.weight'),
  }
}
