// The tensors of a DiT and their names: the official ones, which are canonical here, and those of
// diffusers' Transformer2DModel / DiTTransformer2DModel.

import { badFormat, show } from '../errors.js'
import { countNumbered, type Naming } from './names.js'
import type { TensorMap } from './tensor.js'
import type { DiTConfig, TensorSpec } from './types.js'

/** Width of the sinusoidal timestep embedding. */
export const timestepWidth = 256

/** The tensors of a DiT, in the order of the official state dict. */
export function ditTensors(config: DiTConfig): TensorSpec[] {
  const { depth, hidden: d, patchSize: p, latentSize, channels, mlpHidden } = config
  const tokens = (latentSize[0] / p) * (latentSize[1] / p)
  const rows = config.numClasses + (config.nullClass ? 1 : 0)
  const outChannels = channels * (config.learnSigma ? 2 : 1)
  const linear = (name: string, out: number, inputs: number): TensorSpec[] => [
    { name: `${name}.weight`, shape: [out, inputs] },
    { name: `${name}.bias`, shape: [out] },
  ]
  const block = (i: number) => [
    ...linear(`blocks.${i}.attn.qkv`, 3 * d, d),
    ...linear(`blocks.${i}.attn.proj`, d, d),
    ...linear(`blocks.${i}.mlp.fc1`, mlpHidden, d),
    ...linear(`blocks.${i}.mlp.fc2`, d, mlpHidden),
    ...linear(`blocks.${i}.adaLN_modulation.1`, 6 * d, d),
  ]
  return [
    { name: 'pos_embed', shape: [1, tokens, d], optional: true },
    { name: 'x_embedder.proj.weight', shape: [d, channels, p, p] },
    { name: 'x_embedder.proj.bias', shape: [d] },
    ...linear('t_embedder.mlp.0', d, timestepWidth),
    ...linear('t_embedder.mlp.2', d, d),
    { name: 'y_embedder.embedding_table.weight', shape: [rows, d] },
    ...Array.from({ length: depth }, (_, i) => block(i)).flat(),
    ...linear('final_layer.linear', p * p * outChannels, d),
    ...linear('final_layer.adaLN_modulation.1', 2 * d, d),
  ]
}

export const officialNaming: Naming = { kind: 'official', parts: (name) => [name] }

/** Official name of a module → diffusers' name. */
const outer: Record<string, string> = {
  'x_embedder.proj': 'pos_embed.proj',
  'final_layer.linear': 'proj_out_2',
  'final_layer.adaLN_modulation.1': 'proj_out_1',
}
/** The same for modules that diffusers repeats in every block. */
const repeated: Record<string, string> = {
  't_embedder.mlp.0': 'norm1.emb.timestep_embedder.linear_1',
  't_embedder.mlp.2': 'norm1.emb.timestep_embedder.linear_2',
  'y_embedder.embedding_table': 'norm1.emb.class_embedder.embedding_table',
}
/** The same for the modules of a block; diffusers divides qkv. */
const inBlock: Record<string, readonly string[]> = {
  'attn.qkv': ['attn1.to_q', 'attn1.to_k', 'attn1.to_v'],
  'attn.proj': ['attn1.to_out.0'],
  'mlp.fc1': ['ff.net.0.proj'],
  'mlp.fc2': ['ff.net.2'],
  'adaLN_modulation.1': ['norm1.linear'],
}

/** diffusers' names of a transformer with `depth` blocks. */
export function diffusersNaming(depth: number): Naming {
  const embedder = (module: string, kind: string, i: number) => [
    `transformer_blocks.${i}.${repeated[module]}.${kind}`,
  ]
  return {
    kind: 'diffusers',
    parts(name) {
      if (name === 'pos_embed') return ['pos_embed.pos_embed']
      const [module, kind] = splitKind(name)
      if (Object.hasOwn(repeated, module)) return embedder(module, kind, 0)
      const block = /^blocks\.(\d+)\.(.+)$/.exec(module)
      if (block === null) return [`${outer[module]}.${kind}`]
      const parts = inBlock[block[2] ?? ''] ?? []
      return parts.map((part) => `transformer_blocks.${block[1]}.${part}.${kind}`)
    },
    copies(name) {
      const [module, kind] = splitKind(name)
      if (!Object.hasOwn(repeated, module)) return []
      return Array.from({ length: depth - 1 }, (_, i) => embedder(module, kind, i + 1))
    },
  }
}

/** `a.b.weight` → `a.b` and `weight`. */
function splitKind(name: string): [module: string, kind: string] {
  const dot = name.lastIndexOf('.')
  return [name.slice(0, dot), name.slice(dot + 1)]
}

/** Tensors beside the weights that have no use: counters of normalisation layers. */
export const ignoredInDit = [/(^|\.)num_batches_tracked$/]

/** What the shapes of a DiT's tensors say about its configuration. */
export interface DitShapes {
  readonly naming: Naming
  readonly depth: number
  readonly hidden: number
  readonly channels: number
  readonly patchSize: number
  readonly mlpHidden: number
  /** Rows of the label table. */
  readonly labelRows: number
  readonly outChannels: number
  /** Rows of the stored position table, when there is one. */
  readonly tokens?: number
}

/**
 * Reads sizes off the tensors' shapes. Throws ERR_DIT_FORMAT when the tensors are not a DiT's, or too
 * few to tell.
 */
export function ditShapes(file: string, tensors: TensorMap): DitShapes {
  const official = tensors.has('x_embedder.proj.weight')
  if (!official && !tensors.has('pos_embed.proj.weight')) throw notDit(file, tensors)
  const depth = countNumbered(tensors.keys(), official ? 'blocks.' : 'transformer_blocks.')
  if (depth > tensors.size) {
    throw badFormat(file, `it names block ${depth - 1} but has only ${tensors.size} tensors`)
  }
  const naming = official ? officialNaming : diffusersNaming(depth)
  const dimensions = (name: string, rank: number): number[] => {
    const inFile = naming.parts(name)[0] ?? name
    const shape = tensors.get(inFile)?.shape
    if (shape === undefined) throw badFormat(file, `the tensor ${inFile} of the model is missing`)
    if (shape.length !== rank || shape.includes(0)) {
      throw badFormat(
        file,
        `${inFile} has shape [${shape.join(', ')}], expected ${rank} dimensions`,
      )
    }
    return [...shape]
  }
  const [hidden = 0, channels = 0, patchSize = 0] = dimensions('x_embedder.proj.weight', 4)
  const [labelRows = 0] = dimensions('y_embedder.embedding_table.weight', 2)
  const [outputs = 0] = dimensions('final_layer.linear.weight', 2)
  const [mlpHidden = 0] = dimensions('blocks.0.mlp.fc1.weight', 2)
  const hasTable = tensors.has(naming.parts('pos_embed')[0] ?? '')
  const [, tokens] = hasTable ? dimensions('pos_embed', 3) : []
  return {
    naming,
    depth,
    hidden,
    channels,
    patchSize,
    mlpHidden,
    labelRows,
    outChannels: outputs / patchSize ** 2,
    ...(tokens === undefined ? {} : { tokens }),
  }
}

function notDit(file: string, tensors: TensorMap) {
  const names = [...tensors.keys()]
  const what = names.some((name) => name.startsWith('decoder.'))
    ? 'these look like the weights of a VAE, which belong in the option `vae`; the model is missing'
    : `its ${names.length} tensors are ${names.slice(0, 5).map(show).join(', ')}, …`
  return badFormat(
    file,
    `no DiT: expected x_embedder.proj.weight (official names) or pos_embed.proj.weight (diffusers); ${what}`,
  )
}
