// timeout: 120s
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { resolveSource } from '../lib/formats/source.js'
import { DiT, type LoadOptions } from '../lib/index.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { materialise } from './helpers/tensors.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const pipeline = fixture('diffusers_pipeline')
const sampled = { steps: 3, seed: 9, sampler: 'ddim', eta: 0.5 } as const

/** Every tensor of a source by its canonical name, and the rest of what it says. */
async function contents(source: string, options: LoadOptions = {}) {
  const { config } = options
  const { dit, vae, schedule, id2label } = await resolveSource(source, config ? { config } : {})
  const all = [...dit.tensors, ...(vae?.tensors ?? [])]
  const tensors = Object.fromEntries(all.map((tensor) => [tensor.name, materialise(tensor)]))
  return { config: dit.config, vae: vae?.config, schedule, id2label, tensors }
}

async function saveTo(target: string, source: string, options: LoadOptions = {}): Promise<string> {
  await using dit = await DiT.load(source, { ...fp32, ...options })
  await dit.save(target)
  return target
}

const sources: [name: string, source: string, options?: LoadOptions][] = [
  ['a diffusers pipeline', pipeline],
  ['official weights', fixture('dit_tiny_forward/a96h4/model.safetensors')],
  ['a training checkpoint', fixture('fashion_dit/fashion.pt')],
]

for (const [name, source, options] of sources) {
  for (const target of ['folder', 'file.safetensors']) {
    test(`${name}: saved as ${target} and loaded again, it is the same, bit for bit`, async () => {
      const saved = await saveTo(path.join(temporaryFolder(), target), source, options)
      const before = await contents(source, options)
      const after = await contents(saved)
      if (target === 'folder') assert.equal(after, before)
      else assert.equal({ ...after, vae: before.vae }, { ...before, tensors: after.tensors })
      for (const [tensor, values] of Object.entries(after.tensors)) {
        assert.equal(values, before.tensors[tensor], tensor)
      }

      await using one = await DiT.load(source, { ...fp32, ...options })
      await using two = await DiT.load(saved, { ...fp32, ...(one.vae && { vae: pipeline }) })
      assert.equal(two.classNames, one.classNames)
      const output = one.vae || one.config.channels === 1 ? 'image' : 'latent'
      const request = { ...sampled, output } as never
      assert.equal(await two.sample([1, 2], request), await one.sample([1, 2], request))
    })
  }
}

test('a fresh model is saved as it was initialised', async () => {
  const size = { depth: 1, hidden: 24, heads: 2, latentSize: [4, 8], numClasses: 3 } as const
  const target = path.join(temporaryFolder(), 'fresh.safetensors')
  await using dit = await DiT.create(size, {
    ...fp32,
    seed: 3,
    id2label: { 0: 'zero', 2: 'two' },
    schedule: { kind: 'cosine', steps: 500 },
  })
  await dit.save(target)
  const saved = await contents(target)
  assert.equal(saved.config, dit.config)
  assert.equal(saved.id2label, { 0: 'zero', 2: 'two' })
  assert.equal(saved.schedule, { kind: 'cosine', steps: 500, betaStart: 1e-4, betaEnd: 0.02 })
  const value = (name: string) => saved.tensors[name]?.data as Float32Array
  assert.ok(value('final_layer.linear.weight').every((number) => number === 0))
  assert.ok(value('blocks.0.adaLN_modulation.1.weight').every((number) => number === 0))
  // Xavier's uniform distribution: |w| <= sqrt(6 / (in + out)), and near it somewhere.
  const bound = Math.sqrt(6 / (24 + 96))
  const largest = Math.max(...value('blocks.0.mlp.fc1.weight').map(Math.abs))
  assert.ok(largest <= bound && largest > 0.95 * bound, `${largest} of ${bound}`)
  const table = value('y_embedder.embedding_table.weight')
  const deviation = Math.sqrt(table.reduce((sum, number) => sum + number ** 2, 0) / table.length)
  assert.ok(Math.abs(deviation - 0.02) < 0.005, `${deviation}`)

  await using again = await DiT.load(target, fp32)
  const folder = path.join(temporaryFolder(), 'model')
  await again.save(folder)
  assert.equal((await contents(folder)).tensors, saved.tensors)
})

test('dtype: bf16 halves the file, and is kept when such a model is saved', async () => {
  const folder = temporaryFolder()
  const file = (name: string) => path.join(folder, `${name}.safetensors`)
  await using dit = await DiT.load(fixture('dit_tiny_forward/a96h4/model.safetensors'), fp32)
  await dit.save(file('fp32'))
  await dit.save(file('bf16'), { dtype: 'bf16' })
  await saveTo(file('again'), file('bf16'))
  const bytes = (name: string) => statSync(file(name)).size
  assert.ok(bytes('bf16') < 0.55 * bytes('fp32'))
  assert.ok(readFileSync(file('again')).equals(readFileSync(file('bf16'))))
  // Rounded to nearest, ties to even.
  const exact = (await contents(file('fp32'))).tensors
  const rounded = (await contents(file('bf16'))).tensors
  for (const [name, { data }] of Object.entries(rounded)) {
    for (const [i, value] of data.entries()) {
      const bits = new Uint32Array(Float32Array.of(exact[name]?.data[i] as number).buffer)
      const up = (bits[0] as number) + 0x7fff + (((bits[0] as number) >>> 16) & 1)
      const want = new Float32Array(new Uint32Array([up & 0xffff0000]).buffer)[0]
      assert.is(value, want, name)
    }
  }
})

test('vae: false leaves the VAE out', async () => {
  const folder = path.join(temporaryFolder(), 'model')
  await using dit = await DiT.load(pipeline, fp32)
  await dit.save(folder, { vae: false })
  assert.equal(readdirSync(folder).sort(), ['model_index.json', 'scheduler', 'transformer'])
  await using again = await DiT.load(folder, fp32)
  assert.is(again.vae, undefined)
})

test('a model is replaced, even the one that is loaded; anything else is not', async () => {
  const parent = temporaryFolder()
  const target = path.join(parent, 'deep/er/model')
  await saveTo(target, pipeline)
  await using dit = await DiT.load(target, fp32)
  const before = await dit.sample([1], sampled)
  await dit.save(target)
  await dit.save(target, { dtype: 'bf16', vae: false })
  assert.equal(await dit.sample([1], sampled), before)
  assert.equal(readdirSync(path.dirname(target)), ['model'], 'nothing is left beside it')
  await dit.save(target) // from the loaded model, not from what has taken its place on the disk
  assert.equal(await contents(target), await contents(pipeline))

  const empty = path.join(parent, 'empty')
  mkdirSync(empty)
  await dit.save(empty)
  const other = path.join(parent, 'other')
  mkdirSync(other)
  writeFileSync(path.join(other, 'notes.txt'), 'mine')
  await rejects(() => dit.save(other), 'ERR_DIT_FILE', /holds no model .notes.txt/)
  await rejects(() => dit.save(path.join(other, 'notes.txt')), 'ERR_DIT_FILE', /./)
  await rejects(() => dit.save(path.join(other, 'notes.txt/x')), 'ERR_DIT_FILE', /./)
  await rejects(() => dit.save(path.join(parent, 'no/such.safetensors')), 'ERR_DIT_FILE', /such/)
  assert.is(readFileSync(path.join(other, 'notes.txt'), 'utf8'), 'mine')
  assert.equal(readdirSync(parent).sort(), ['deep', 'empty', 'other'])
})

test('models that save to one file at once leave one of them, whole', async () => {
  const target = path.join(temporaryFolder(), 'model.safetensors')
  const source = fixture('fashion_dit/fashion.pt')
  const models = await Promise.all([fp32, fp32].map((options) => DiT.load(source, options)))
  const dtypes = ['fp32', 'bf16'] as const
  for (let turn = 0; turn < 10; turn++) {
    await Promise.all(models.map((model, i) => model.save(target, { dtype: dtypes[i] as 'fp32' })))
    await resolveSource(target)
  }
  assert.equal(readdirSync(path.dirname(target)), ['model.safetensors'])
  for (const model of models) await model.close()
})

test('a file that was cut off after it was loaded: an error, no crash', async () => {
  const folder = temporaryFolder()
  const source = path.join(folder, 'fashion.pt')
  copyFileSync(fixture('fashion_dit/fashion.pt'), source)
  await using dit = await DiT.load(source, fp32)
  truncateSync(source, 1000)
  for (const dtype of ['fp32', 'bf16'] as const) {
    const target = path.join(folder, 'model.safetensors')
    await rejects(() => dit.save(target, { dtype }), 'ERR_DIT_FILE', /was changed after/)
  }
  assert.equal(readdirSync(folder), ['fashion.pt'])
  assert.is((await dit.sample([1], sampled)).length, 1)
})

test('save: wrong arguments', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  await rejects(() => dit.save(''), 'ERR_DIT_OPTION', /a path for target/)
  await rejects(
    () => dit.save('x', { dtype: 'fp16' as never }),
    'ERR_DIT_OPTION',
    /'fp32' or 'bf16'/,
  )
  await rejects(
    () => dit.save('x', { format: 'pt' } as never),
    'ERR_DIT_OPTION',
    /no option 'format'/,
  )
})

test.run()
