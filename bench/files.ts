// What the benchmarks read: DiT-XL/2 and the Stable Diffusion VAE with the documented random weights of
// test/fixtures/full_size, the peer's model over the same weights, the peer itself. All of it is made
// once, into bench/.cache (3.1 GB, ignored by git).

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { completeConfig } from '../lib/formats/dit_config.js'
import { readSafetensors } from '../lib/formats/safetensors.js'
import type { DiTConfig, TensorPart, VaeConfig } from '../lib/formats/types.js'
import { parseVaeJson } from '../lib/formats/vae_config.js'
import type { Tensor } from '../lib/index.js'
import { packageRoot as root } from '../lib/root.cjs'
import { ditOnnx } from './peers/dit_onnx.js'

const cache = path.join(root, 'bench/.cache')
const fixtures = path.join(root, 'test/fixtures/full_size')
const peerPackage = 'onnxruntime-node@1.30.0'

/** Inputs of one forward pass: n images, timesteps and classes. */
export interface Forward {
  x: Tensor
  t: number[]
  y: number[]
}

export const ditConfig: DiTConfig = completeConfig('DiT-XL/2')

function run(command: string, ...args: string[]): void {
  const { status, error } = spawnSync(command, args, { stdio: ['ignore', 2, 2] })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed`, { cause: error })
}

/** Makes a file under another name first, so that an interrupted run leaves none behind. */
function once(file: string, make: (unfinished: string) => void): string {
  if (existsSync(file)) return file
  mkdirSync(path.dirname(file), { recursive: true })
  console.error(`making ${path.relative(root, file)}`)
  make(`${file}.new`)
  renameSync(`${file}.new`, file)
  return file
}

function drawWeights(listing: string, file: string): string {
  const tool = path.join(root, 'build/Release/dit_prng_weights')
  return once(file, (unfinished) => run(tool, path.join(fixtures, listing), unfinished))
}

/** The safetensors file of the transformer, fp32, with its config.json beside it. */
export function ditWeights(): string {
  const folder = path.join(cache, 'dit_xl2')
  once(path.join(folder, 'config.json'), (file) => writeFileSync(file, JSON.stringify(ditConfig)))
  return drawWeights('dit_xl2.json', path.join(folder, 'model.safetensors'))
}

/** The same of the VAE. */
export function vaeWeights(): string {
  const folder = path.join(cache, 'sd_vae')
  once(path.join(folder, 'config.json'), (file) => writeFileSync(file, vaeJson()))
  return drawWeights('sd_vae.json', path.join(folder, 'model.safetensors'))
}

function vaeJson(): string {
  return readFileSync(path.join(fixtures, 'sd_vae_config.json'), 'utf8')
}

export function vaeConfig(): VaeConfig {
  return parseVaeJson(JSON.parse(vaeJson()), 'sd_vae_config.json')
}

/** The peer's model, for `batch` images. It lies beside the weights, which it refers to. */
export async function peerModel(batch: number): Promise<string> {
  const weights = ditWeights()
  const { tensors } = await readSafetensors(weights)
  const file = path.join(path.dirname(weights), `batch${batch}.onnx`)
  writeFileSync(file, ditOnnx(ditConfig, batch, tensors))
  return file
}

/** The folder that the peer is installed in. Its install script, which fetches CUDA, is not run. */
export function peerFolder(): string {
  const folder = path.join(cache, 'onnxruntime')
  const manifest = path.join(folder, 'node_modules/onnxruntime-node/package.json')
  if (!existsSync(manifest)) {
    console.error(`installing ${peerPackage} into ${path.relative(root, folder)}`)
    mkdirSync(folder, { recursive: true })
    writeFileSync(path.join(folder, 'package.json'), '{ "private": true }\n')
    const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']
    run('npm', 'install', '--prefix', folder, ...flags, peerPackage)
  }
  return folder
}

/** Inputs of the reference's full-size run, and what it computed from them. */
export async function reference(): Promise<Forward & { out: Float32Array }> {
  const file = path.join(fixtures, 'dit_xl2.safetensors')
  const { tensors } = await readSafetensors(file)
  const bytes = readFileSync(file)
  const floats = (name: string) => new Float32Array(bufferOf(name))
  const integers = (name: string) => Array.from(new BigInt64Array(bufferOf(name)), Number)
  function bufferOf(name: string): ArrayBuffer {
    const { offset } = tensors.get(name) as TensorPart
    return new Uint8Array(bytes.subarray(offset, offset + sizeOf(name))).buffer
  }
  function sizeOf(name: string): number {
    const { shape, dtype } = tensors.get(name) as TensorPart
    return shape.reduce((product, n) => product * n, dtype === 'I64' ? 8 : 4)
  }
  const x = { data: floats('x'), shape: [...(tensors.get('x') as TensorPart).shape] }
  return { x, t: integers('t'), y: integers('y'), out: floats('out') }
}
