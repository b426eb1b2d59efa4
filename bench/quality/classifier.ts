// The classifier of Fashion-MNIST whose opinions and features measure quality. Trained once, on one
// thread; its parameters are kept in a folder.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/root.cjs'
import { imageAt, type Labelled, side } from './images.js'
import { createNetwork, forward, type Layer, lossAndGradient, type Network } from './network.js'
import { Random } from './random.js'

export const classes = 10
/** Numbers of the last layer but one. */
export const featureCount = 64

/** 28×28 → 14×14×16 → 7×7×32 → 64 features → 10 logits. */
const layers: readonly Layer[] = [
  { kernel: 5, stride: 2, padding: 2, channels: 16 },
  { kernel: 3, stride: 2, padding: 1, channels: 32 },
  { kernel: 7, stride: 1, padding: 0, channels: featureCount },
  { kernel: 1, stride: 1, padding: 0, channels: classes },
]

export interface Training {
  seed: number
  epochs: number
  batchSize: number
  /** The rate of the first step; the last one's is near zero. */
  learningRate: number
}

export const defaultTraining: Training = { seed: 1, epochs: 5, batchSize: 64, learningRate: 2e-3 }

export function createClassifier(seed: number): Network {
  return createNetwork({ size: side, channels: 1 }, layers, seed)
}

/** Images as the network takes them: -1 to 1. */
function inputs(pixels: Uint8Array): Float64Array {
  return Float64Array.from(pixels, (value) => value / 127.5 - 1)
}

/**
 * Trains with Adam (Kingma and Ba 2015; beta 0.9 and 0.999, eps 1e-8) and a rate that falls to zero
 * along half a cosine. The same data and settings give the same bits.
 */
export function train(
  network: Network,
  { pixels, labels }: Labelled,
  { seed, epochs, batchSize, learningRate }: Training,
  onStep: (event: { step: number; steps: number; loss: number }) => void = () => {},
): void {
  const { parameters } = network
  const mean = new Float64Array(parameters.length)
  const square = new Float64Array(parameters.length)
  const random = new Random(seed)
  const perEpoch = Math.floor(labels.length / batchSize)
  const steps = epochs * perEpoch
  let order: Uint32Array = new Uint32Array()
  for (let step = 1; step <= steps; step++) {
    const first = ((step - 1) % perEpoch) * batchSize
    if (first === 0) order = random.permutation(labels.length)
    const chosen = order.subarray(first, first + batchSize)
    const batch = new Uint8Array(batchSize * side ** 2)
    for (const [i, from] of chosen.entries()) batch.set(imageAt(pixels, from), i * side ** 2)
    const wanted = Array.from(chosen, (from) => labels[from] as number)
    const { loss, gradient } = lossAndGradient(network, inputs(batch), wanted, batchSize)

    const rate = (learningRate * (1 + Math.cos((Math.PI * (step - 1)) / steps))) / 2
    const meanScale = 1 / (1 - 0.9 ** step)
    const squareScale = 1 / (1 - 0.999 ** step)
    for (let i = 0; i < parameters.length; i++) {
      const slope = gradient[i] as number
      const m = 0.9 * (mean[i] as number) + 0.1 * slope
      const s = 0.999 * (square[i] as number) + 0.001 * slope * slope
      mean[i] = m
      square[i] = s
      const change = (rate * m * meanScale) / (Math.sqrt(s * squareScale) + 1e-8)
      parameters[i] = (parameters[i] as number) - change
    }
    onStep({ step, steps, loss })
  }
}

/** What the classifier sees in images: classes [n] and features [n, 64]. */
export function classify(network: Network, pixels: Uint8Array): Seen {
  const n = pixels.length / side ** 2
  const predicted = new Uint8Array(n)
  const features = new Float64Array(n * featureCount)
  const batchSize = 100
  for (let begin = 0; begin < n; begin += batchSize) {
    const end = Math.min(n, begin + batchSize)
    const batch = inputs(pixels.subarray(begin * side ** 2, end * side ** 2))
    const { outputs } = forward(network, batch, end - begin)
    features.set(outputs.at(-2) as Float64Array, begin * featureCount)
    const logits = outputs.at(-1) as Float64Array
    for (let i = begin; i < end; i++) {
      const row = logits.subarray((i - begin) * classes, (i - begin + 1) * classes)
      predicted[i] = row.indexOf(row.reduce((a, b) => Math.max(a, b)))
    }
  }
  return { predicted, features }
}

export interface Seen {
  readonly predicted: Uint8Array
  readonly features: Float64Array
}

/**
 * The trained classifier: from `folder`, or trained and put there. Its file is named by a hash of the
 * settings, the training data and the sources that it follows from.
 */
export function trainedClassifier(
  folder: string,
  data: Labelled,
  training: Training,
  onStep?: Parameters<typeof train>[3],
): Network {
  const network = createClassifier(training.seed)
  const file = path.join(folder, `fashion-classifier-${keyOf(data, training)}.f64`)
  if (existsSync(file)) {
    const bytes = readFileSync(file)
    if (bytes.length !== network.parameters.byteLength) throw new Error(`${file} is damaged`)
    new Uint8Array(network.parameters.buffer).set(bytes)
    return network
  }
  train(network, data, training, onStep)
  mkdirSync(folder, { recursive: true })
  writeFileSync(`${file}.new`, new Uint8Array(network.parameters.buffer))
  renameSync(`${file}.new`, file)
  return network
}

function keyOf({ pixels, labels }: Labelled, training: Training): string {
  const hash = createHash('sha256').update(JSON.stringify(training)).update(pixels).update(labels)
  for (const name of ['classifier.ts', 'matrix.ts', 'network.ts', 'random.ts']) {
    hash.update(readFileSync(path.join(packageRoot, 'bench/quality', name)))
  }
  return hash.digest('hex').slice(0, 16)
}
