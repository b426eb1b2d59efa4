// A convolutional network in float64: convolutions with a ReLU after each but the last, then softmax and
// cross-entropy. A fully connected layer is a convolution whose kernel covers its whole input.
//
// Activations are [n, height, width, channels]. A convolution is a product: every position's patch of
// kernel * kernel * channels numbers, times weights [kernel * kernel * channels, out channels].

import { addProduct, type Factor } from './matrix.js'
import { Random } from './random.js'

/** One convolution; `padding` zeros on each side of its input. */
export interface Layer {
  readonly kernel: number
  readonly stride: number
  readonly padding: number
  readonly channels: number
}

/** Sizes of one layer at work. */
interface Shape extends Layer {
  readonly inSize: number
  readonly inChannels: number
  readonly outSize: number
  /** Numbers in a patch. */
  readonly patch: number
}

export interface Network {
  readonly shapes: readonly Shape[]
  /** Of every layer the weights [patch, channels], then the biases [channels]. */
  readonly parameters: Float64Array
}

/** What `forward` computed. */
export interface Forward {
  readonly n: number
  /** Of every layer the patches of its input: [n * outSize^2, patch]. */
  readonly patches: readonly Float64Array[]
  /** Of every layer the output: [n, outSize, outSize, channels]. The last one's are the logits. */
  readonly outputs: readonly Float64Array[]
}

/**
 * A network for square images [n, size, size, channels], its weights drawn uniformly with variance
 * 2 / patch (He et al. 2015, "Delving deep into rectifiers", equation 10), its biases zero.
 */
export function createNetwork(
  input: { size: number; channels: number },
  layers: readonly Layer[],
  seed: number,
): Network {
  const shapes: Shape[] = []
  let { size: inSize, channels: inChannels } = input
  for (const layer of layers) {
    const outSize = Math.floor((inSize + 2 * layer.padding - layer.kernel) / layer.stride) + 1
    shapes.push({ ...layer, inSize, inChannels, outSize, patch: layer.kernel ** 2 * inChannels })
    inSize = outSize
    inChannels = layer.channels
  }
  const count = shapes.reduce((sum, { patch, channels }) => sum + (patch + 1) * channels, 0)
  const network = { shapes, parameters: new Float64Array(count) }
  const random = new Random(seed)
  for (const [i, { weights }] of partsOf(network, network.parameters).entries()) {
    const bound = Math.sqrt(6 / (shapes[i] as Shape).patch)
    for (let j = 0; j < weights.length; j++) weights[j] = bound * (2 * random.next() - 1)
  }
  return network
}

/** Each layer's weights and biases within an array as long as the parameters. */
function partsOf({ shapes }: Network, array: Float64Array) {
  let at = 0
  return shapes.map(({ patch, channels }) => {
    const weights = array.subarray(at, at + patch * channels)
    const biases = array.subarray(at + patch * channels, at + (patch + 1) * channels)
    at += (patch + 1) * channels
    return { weights, biases }
  })
}

const rowMajor = (data: Float64Array, columns: number): Factor => ({
  data,
  row: columns,
  column: 1,
})
const transposed = (data: Float64Array, columns: number): Factor => ({
  data,
  row: 1,
  column: columns,
})

/** Calls `each` with where a run of `inChannels` numbers lies in the image and in the patches. */
function eachRun(shape: Shape, n: number, each: (image: number, patches: number) => void): void {
  const { kernel, stride, padding, inSize, inChannels, outSize } = shape
  let at = 0
  for (let image = 0; image < n; image++) {
    for (let y = 0; y < outSize; y++) {
      for (let x = 0; x < outSize; x++) {
        for (let ky = 0; ky < kernel; ky++) {
          const row = y * stride - padding + ky
          for (let kx = 0; kx < kernel; kx++) {
            const column = x * stride - padding + kx
            if (row >= 0 && row < inSize && column >= 0 && column < inSize) {
              each(((image * inSize + row) * inSize + column) * inChannels, at)
            }
            at += inChannels
          }
        }
      }
    }
  }
}

/** Runs n images [n, size, size, channels]. */
export function forward(network: Network, images: Float64Array, n: number): Forward {
  const parts = partsOf(network, network.parameters)
  const patches: Float64Array[] = []
  const outputs: Float64Array[] = []
  let input = images
  for (const [i, shape] of network.shapes.entries()) {
    const { inChannels, outSize, patch, channels } = shape
    const { weights, biases } = parts[i] as (typeof parts)[number]
    const rows = n * outSize ** 2
    const from = input
    const gathered = new Float64Array(rows * patch)
    eachRun(shape, n, (image, at) => {
      for (let c = 0; c < inChannels; c++) gathered[at + c] = from[image + c] as number
    })
    const output = new Float64Array(rows * channels)
    for (let row = 0; row < rows; row++) output.set(biases, row * channels)
    const product = [rows, channels, patch] as const
    addProduct(output, rowMajor(gathered, patch), rowMajor(weights, channels), product)
    if (i < network.shapes.length - 1) {
      for (let j = 0; j < output.length; j++) output[j] = Math.max(0, output[j] as number)
    }
    patches.push(gathered)
    outputs.push(output)
    input = output
  }
  return { n, patches, outputs }
}

/** The mean cross-entropy of a batch, in nats, and its gradient by the logits [n, classes]. */
function crossEntropy(logits: Float64Array, labels: ArrayLike<number>, n: number) {
  const classes = logits.length / n
  const gradient = new Float64Array(logits.length)
  let loss = 0
  for (let i = 0; i < n; i++) {
    const row = logits.subarray(i * classes, (i + 1) * classes)
    const largest = row.reduce((a, b) => Math.max(a, b))
    const sum = row.reduce((total, logit) => total + Math.exp(logit - largest), 0)
    const label = labels[i] as number
    loss += (Math.log(sum) + largest - (row[label] as number)) / n
    for (let c = 0; c < classes; c++) {
      const probability = Math.exp((row[c] as number) - largest) / sum
      gradient[i * classes + c] = (probability - (c === label ? 1 : 0)) / n
    }
  }
  return { loss, gradient }
}

/** The mean cross-entropy of n labelled images, and its gradient by the parameters. */
export function lossAndGradient(
  network: Network,
  images: Float64Array,
  labels: ArrayLike<number>,
  n: number,
): { loss: number; gradient: Float64Array } {
  const { patches, outputs } = forward(network, images, n)
  const { loss, gradient: byLogits } = crossEntropy(outputs.at(-1) as Float64Array, labels, n)
  const gradient = new Float64Array(network.parameters.length)
  const gradients = partsOf(network, gradient)
  const parts = partsOf(network, network.parameters)
  let byOutput = byLogits
  for (let i = network.shapes.length - 1; i >= 0; i--) {
    const shape = network.shapes[i] as Shape
    const { inSize, inChannels, outSize, patch, channels } = shape
    const { weights, biases } = gradients[i] as (typeof gradients)[number]
    const rows = n * outSize ** 2
    for (let j = 0; j < byOutput.length; j++) {
      const c = j % channels
      biases[c] = (biases[c] as number) + (byOutput[j] as number)
    }
    const gathered = transposed(patches[i] as Float64Array, patch)
    addProduct(weights, gathered, rowMajor(byOutput, channels), [patch, channels, rows])
    if (i === 0) break

    const byPatches = new Float64Array(rows * patch)
    const factor = transposed((parts[i] as (typeof parts)[number]).weights, channels)
    addProduct(byPatches, rowMajor(byOutput, channels), factor, [rows, patch, channels])
    const byInput = new Float64Array(n * inSize ** 2 * inChannels)
    eachRun(shape, n, (image, at) => {
      for (let c = 0; c < inChannels; c++) {
        byInput[image + c] = (byInput[image + c] as number) + (byPatches[at + c] as number)
      }
    })
    const input = outputs[i - 1] as Float64Array
    for (let j = 0; j < byInput.length; j++) if (input[j] === 0) byInput[j] = 0 // ReLU
    byOutput = byInput
  }
  return { loss, gradient }
}
