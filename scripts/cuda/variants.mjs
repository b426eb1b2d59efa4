// What the model of the machine (model.mjs) expects of the variants that `scripts/gpu-check bench
// --variants` times, by the labels and names of the benchmarks: predictions to hold outcomes against.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { assumed, hopperProduct, predict } from './model.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')
const read = (file) => readFileSync(path.join(root, file), 'utf8')

/** The rows of native/cuda/linear_candidates.h: { name, tileM, tileN, cluster, stages, group, turns }. */
export function linearCandidates() {
  const rows = read('native/cuda/linear_candidates.h').matchAll(
    /^ {4}\{(\d+), (\d+), (\d+), (\d+), (\w+), (true|false)\},$/gm,
  )
  return [...rows].map(([, ...row]) => {
    const [tileM, tileN, cluster, stages] = row.slice(0, 4).map(Number)
    const group = { kOne: 1, kAll: 'all' }[row[4]] ?? Number(row[4])
    const turns = row[5] === 'true'
    const name = `${tileM}x${tileN}x${cluster}s${stages}g${group}${turns ? 't' : ''}`
    return { name, tileM, tileN, cluster, stages, group, turns }
  })
}

/** Milliseconds of a step of XL/2 256 in bench/ROOFLINE.md. */
function predictedStep(images) {
  const row = new RegExp(
    `^\\| DiT-XL/2 256, a step, ${images} with guidance \\| \\S+ \\| (\\S+) \\|`,
    'm',
  )
  const [, milliseconds] = row.exec(read('bench/ROOFLINE.md')) ?? []
  if (!milliseconds) throw new Error(`bench/ROOFLINE.md predicts no step of ${images}`)
  return Number(milliseconds)
}

/** Of the four products: { label: { variant: seconds } } */
export function linearPredictions() {
  const found = {}
  const c = 1152
  const products = [
    ['qkv', 3 * c, c, 'bias'],
    ['proj', c, c, 'residual'],
    ['fc1', 4 * c, c, 'gelu'],
    ['fc2', c, 4 * c, 'residual'],
  ]
  for (const [name, n, k, epilogue] of products) {
    for (const m of [16384, 512]) {
      const bytes = 2 * (m * k + n * k + m * n * (epilogue === 'residual' ? 2 : 1))
      const time = (shape) =>
        predict({ bytes, ...hopperProduct({ m, n, k, epilogue, ...(shape && { shape }) }) }).time
      const label = `linear.${name} ${m}x${n}x${k} bf16`
      found[label] = { production: time() }
      for (const shape of linearCandidates()) found[label][`linear=${shape.name}`] = time(shape)
    }
  }
  return found
}

/** { label: { variant: seconds } } */
export function variantPredictions() {
  const found = linearPredictions()
  const kernels = 198 // of a step
  for (const [rows, images] of [
    [64, '32 images'],
    [2, 'one image'],
  ]) {
    const production = predictedStep(images) * 1e-3
    found[`dit-xl2.step ${rows}x256px bf16`] = {
      production,
      'launch=dependent': production - kernels * assumed.hidden,
    }
  }
  return found
}
