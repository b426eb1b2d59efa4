// What a model costs: parameters, memory, and the arithmetic of one forward pass.

import type { DiTConfig, TensorSource, VaeConfig } from '../formats/types.js'

export interface Cost {
  /** Multiply-accumulates: the DiT paper's "Gflops" (118.6 G for XL/2 at 256×256). */
  macs: number
  /** Floating-point operations: a multiplication and an addition for each. */
  flops: number
}

function cost(macs: number): Cost {
  return { macs, flops: 2 * macs }
}

/** Width of the sinusoid that the timestep is embedded with. */
const frequencies = 256

/**
 * One evaluation of the model for one image: its matrix products and attention; what is done per
 * number (norms, activations, softmax) is not counted, as is usual.
 */
export function forwardCost(config: DiTConfig, [height, width] = config.latentSize): Cost {
  const { depth, hidden: C, mlpHidden, patchSize, channels, learnSigma } = config
  const T = (height / patchSize) * (width / patchSize)
  const patch = channels * patchSize ** 2
  const embed = T * patch * C + frequencies * C + C * C
  const products = T * (4 * C * C + 2 * C * mlpHidden) // qkv, projection; the MLP
  const attention = 2 * T * T * C // q kᵀ; softmax · v
  const modulation = 6 * C * C
  const last = T * C * patch * (learnSigma ? 2 : 1) + 2 * C * C
  return cost(embed + depth * (products + attention + modulation) + last)
}

/** Decoding one latent of that size to an image. */
export function decodeCost(vae: VaeConfig, [height, width]: readonly [number, number]): Cost {
  const { blockOutChannels, layersPerBlock, latentChannels, outChannels } = vae
  let pixels = height * width
  let channels = blockOutChannels.at(-1) as number
  const conv = (from: number, to: number, size = 3) => pixels * size ** 2 * from * to
  const resnet = (from: number, to: number) =>
    conv(from, to) + conv(to, to) + (from === to ? 0 : conv(from, to, 1))

  let macs = vae.usePostQuantConv ? conv(latentChannels, latentChannels, 1) : 0
  macs += conv(latentChannels, channels) + 2 * resnet(channels, channels)
  if (vae.midBlockAddAttention) macs += 4 * conv(channels, channels, 1) + 2 * pixels ** 2 * channels
  for (const [i, to] of [...blockOutChannels].reverse().entries()) {
    for (let layer = 0; layer <= layersPerBlock; layer++) {
      macs += resnet(channels, to)
      channels = to
    }
    if (i === blockOutChannels.length - 1) continue
    pixels *= 4
    macs += conv(channels, channels)
  }
  return cost(macs + conv(channels, outChannels))
}

function numbers(tensor: TensorSource): number {
  const count = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1)
  return tensor.parts.reduce((sum, part) => sum + count(part.shape), 0)
}

/** Numbers that training changes: all but the table of positions. */
export function parameterCount(tensors: readonly TensorSource[]): number {
  return tensors
    .filter(({ name }) => name !== 'pos_embed')
    .reduce((sum, tensor) => sum + numbers(tensor), 0)
}

/**
 * Bytes of a DiT's weights in memory. With bf16 the matrices of the blocks and of the first and last
 * layer have two bytes a number; embedding tables, biases and the timestep's small network keep four.
 */
export function weightBytes(tensors: readonly TensorSource[], precision: 'fp32' | 'bf16'): number {
  const isMatrix = /^(x_embedder|blocks\.\d+|final_layer)\..*weight$/
  return tensors.reduce((sum, tensor) => {
    const size = precision === 'bf16' && isMatrix.test(tensor.name) ? 2 : 4
    return sum + size * numbers(tensor)
  }, 0)
}
