// What names the weights of a model: the same for the same, another for any other.
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type LoadOptions } from '../lib/index.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'

const pipeline = fixture('diffusers_pipeline')
const fashion = fixture('fashion_dit/fashion.pt')
const cpu = { precision: 'fp32', threads: 1 } as const

async function hash(source: string, options: LoadOptions = {}): Promise<string> {
  await using dit = await DiT.load(source, { ...cpu, ...options })
  return dit.weightsHash()
}

test('two loads of a model, and its copy elsewhere, have one hash', async () => {
  const copy = temporaryFolder()
  cpSync(pipeline, copy, { recursive: true })
  const first = await hash(pipeline)
  assert.match(first, /^[0-9a-f]{64}$/)
  assert.is(await hash(pipeline), first)
  assert.is(await hash(copy), first)
  assert.is(await hash(pipeline, { precision: 'bf16' }), first, 'precision is no weight')
})

test('official and diffusers names of the same weights have one hash', async () => {
  const folder = temporaryFolder()
  const options = { precision: 'fp32', threads: 1 } as const
  await using dit = await DiT.load(fashion, options)
  await dit.save(path.join(folder, 'official.safetensors'))
  await dit.save(path.join(folder, 'diffusers'))
  const official = await hash(path.join(folder, 'official.safetensors'))
  assert.is(await hash(path.join(folder, 'diffusers')), official)
})

test('one bit of one weight, of the VAE, a size or other weights of a file change it', async () => {
  const whole = await hash(pipeline)
  for (const component of ['transformer', 'vae']) {
    const copy = temporaryFolder()
    cpSync(pipeline, copy, { recursive: true })
    const file = path.join(copy, component, 'diffusion_pytorch_model.safetensors')
    const bytes = readFileSync(file)
    bytes[bytes.length - 4] = (bytes[bytes.length - 4] as number) ^ 1
    writeFileSync(file, bytes)
    assert.is.not(await hash(copy), whole, component)
  }
  assert.is.not(await hash(pipeline, { latentSize: 16 }), whole)
  assert.is.not(await hash(fashion, { weights: 'model' }), await hash(fashion))
})

test('fresh and trained weights are hashed as they would be saved', async () => {
  const config = { depth: 1, hidden: 32, heads: 2, latentSize: 4, channels: 1, numClasses: 3 }
  await using dit = await DiT.create(config, { ...cpu, seed: 1 })
  await using same = await DiT.create(config, { ...cpu, seed: 1 })
  await using other = await DiT.create(config, { ...cpu, seed: 2 })
  const fresh = await dit.weightsHash()
  assert.is(await same.weightsHash(), fresh)
  assert.is.not(await other.weightsHash(), fresh)

  const trainer = await dit.trainer({ batchSize: 2, lr: 0.1, emaDecay: 0 })
  const x = { data: new Float32Array(32).fill(0.5), shape: [2, 1, 4, 4] }
  await trainer.step({ x, y: [0, 1] })
  await trainer.close()
  const trained = await dit.weightsHash()
  assert.is.not(trained, fresh)
  const file = path.join(temporaryFolder(), 'model.safetensors')
  await dit.save(file)
  assert.is(await hash(file), trained)
})

test('a file that is gone is told of, and asked for again the next time', async () => {
  const copy = temporaryFolder()
  cpSync(pipeline, copy, { recursive: true })
  await using dit = await DiT.load(copy, cpu)
  const file = path.join(copy, 'transformer/diffusion_pytorch_model.safetensors')
  const bytes = readFileSync(file)
  writeFileSync(file, bytes.subarray(0, 1000))
  await rejects(() => dit.weightsHash(), 'ERR_DIT_FORMAT', /ended at byte/)
  writeFileSync(file, bytes)
  assert.is(await dit.weightsHash(), await hash(pipeline))
})

test.run()
