import {
  chmodSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { completeConfig } from '../lib/formats/dit_config.js'
import { ditTensors } from '../lib/formats/dit_names.js'
import { readSafetensors, safetensorsLayout } from '../lib/formats/safetensors.js'
import { configMetadataKey, resolveSource } from '../lib/formats/source.js'
import type { LoadedSource, ResolveOptions, TensorSource } from '../lib/formats/types.js'
import { diffusersConfigs, diffusersTensors, ownConfig } from '../lib/formats/write.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { materialise } from './helpers/tensors.js'
import { dictionary, pickle, storage, tensor, torchFile } from './helpers/torch.js'

function copy(from: string, ...to: string[]): string {
  const file = path.join(...(to as [string, ...string[]]))
  mkdirSync(path.dirname(file), { recursive: true })
  copyFileSync(fixture(from), file)
  return file
}

const refuse = (
  source: string,
  code: Parameters<typeof rejects>[1],
  message: RegExp,
  options: ResolveOptions = {},
) => rejects(() => resolveSource(source, options), code, message)

function values(sources: readonly TensorSource[], without: string[] = []) {
  const kept = sources.filter(({ name }) => !without.includes(name))
  return new Map(kept.map((source) => [source.name, materialise(source)]))
}

const micro24 = 'dit_tiny_forward/micro24/model.safetensors'
const pipelineFolder = fixture('diffusers_pipeline')
const configured = { config: { heads: 2 } } as const

test('the four kinds of source give the same tensors', async () => {
  const place = temporaryFolder()
  const bin = copy('pt_checkpoint/state_dict.pt', place, 'dit.bin')
  const sources: LoadedSource[] = [
    await resolveSource(pipelineFolder),
    await resolveSource(fixture(micro24)),
    await resolveSource(bin, configured),
    await resolveSource(fixture('pt_checkpoint/train_checkpoint.pt'), configured),
  ]
  assert.equal(
    sources.map(({ kind }) => kind),
    ['diffusers', 'safetensors', 'torch', 'torch'],
  )
  const { tensors } = await readSafetensors(fixture(micro24))
  const expected = new Map(
    [...tensors].map(([name, part]) => [name, materialise({ parts: [part] })] as const),
  )
  for (const source of sources) {
    const got = values(source.dit.tensors)
    const names = [...expected.keys()].filter(
      (name) => name !== 'pos_embed' || source.kind !== 'diffusers',
    )
    assert.equal([...got.keys()].sort(), names.sort(), source.description)
    for (const name of names) assert.equal(got.get(name), expected.get(name), name)
    assert.equal(source.dit.config, sources[0]?.dit.config)
    assert.equal(source.schedule, { kind: 'linear', steps: 1000, betaStart: 1e-4, betaEnd: 0.02 })
  }
  assert.equal(sources[0]?.dit.config, {
    depth: 2,
    hidden: 24,
    heads: 2,
    patchSize: 2,
    latentSize: [8, 8],
    channels: 4,
    numClasses: 5,
    nullClass: true,
    learnSigma: true,
    mlpHidden: 96,
  })
})

test('a diffusers pipeline: labels, VAE, canonical order, qkv in parts', async () => {
  const source = await resolveSource(pipelineFolder)
  assert.is(source.id2label?.[4], 'class number 4, label 4')
  assert.is(source.vae?.config.groups, 8)
  assert.is(source.vae?.config.scalingFactor, 0.18215)
  assert.equal(source.notes, [])
  assert.match(
    source.description,
    /diffusers_pipeline.transformer.diffusion_pytorch_model\.safetensors$/,
  )
  const official = await resolveSource(fixture(micro24))
  assert.equal(
    ['pos_embed', ...source.dit.tensors.map(({ name }) => name)],
    official.dit.tensors.map(({ name }) => name),
  )
  const qkv = source.dit.tensors.find(({ name }) => name === 'blocks.1.attn.qkv.weight')
  assert.is(qkv?.parts.length, 3)
})

test('both namings of the VAE give the same tensors', async () => {
  const legacy = await resolveSource(pipelineFolder)
  const modern = await resolveSource(pipelineFolder, { vae: fixture('vae_tiny/modern') }).catch(
    (error) => error,
  )
  // Without its config.json the groups cannot be known: 16 channels have no 32 groups.
  assert.match(modern.message, /cannot be normalised in 32 groups/)
  const place = temporaryFolder()
  copy(
    'vae_tiny/modern/diffusion_pytorch_model.safetensors',
    place,
    'diffusion_pytorch_model.safetensors',
  )
  copy('vae_tiny/config.json', place, 'config.json')
  const source = await resolveSource(pipelineFolder, { vae: place })
  assert.match(source.vae?.description ?? '', /\(option vae\)$/)
  assert.equal(source.vae?.config, legacy.vae?.config)
  assert.is(source.vae?.tensors.length, 124)
  assert.equal(values(source.vae?.tensors ?? []), values(legacy.vae?.tensors ?? []))
  // A pipeline's VAE, and a file's, for a checkpoint that has none.
  for (const vae of [pipelineFolder, path.join(place, 'diffusion_pytorch_model.safetensors')]) {
    const single = await resolveSource(fixture(micro24), { vae })
    assert.equal(values(single.vae?.tensors ?? []), values(legacy.vae?.tensors ?? []))
  }
  assert.is((await resolveSource(fixture(micro24))).vae, undefined)
})

test("a VAE's projections as 1x1 convolutions, and a training checkpoint's leftovers", async () => {
  const place = temporaryFolder()
  copy('vae_tiny/config.json', place, 'config.json')
  const { tensors } = await readSafetensors(
    fixture('vae_tiny/modern/diffusion_pytorch_model.safetensors'),
  )
  const shapes = [...tensors].map(([name, { dtype, shape }]) => {
    const matrix = /attentions.*weight/.test(name) && shape.length === 2
    return { name, dtype, shape: matrix ? [...shape, 1, 1] : shape }
  })
  const scalar = { dtype: 'F32', shape: [] } as const
  const extra = ['loss.logvar', 'encoder.norm.num_batches_tracked'].map((name) => ({
    name,
    ...scalar,
  }))
  const write = (list: typeof shapes) => {
    const layout = safetensorsLayout(list)
    const file = path.join(place, 'model.safetensors')
    writeFileSync(
      file,
      Buffer.concat([layout.header, Buffer.alloc(layout.fileBytes - layout.header.length)]),
    )
  }
  write([...shapes, ...extra])
  const { vae } = await resolveSource(pipelineFolder, { vae: place })
  const projection = vae?.tensors.find(({ name }) => name.endsWith('attentions.0.to_q.weight'))
  assert.equal(projection?.parts[0]?.shape, [32, 32])
  write([...shapes, { name: 'quant_conv.scale', ...scalar }])
  await refuse(pipelineFolder, 'ERR_DIT_FORMAT', /1 not part of the model: quant_conv\.scale/, {
    vae: place,
  })
})

test('the official training checkpoint: EMA, model, what it was trained for', async () => {
  const file = fixture('pt_checkpoint/train_checkpoint.pt')
  // Its arguments say DiT-XL/2 at 256 pixels; its tensors are tiny and win.
  await refuse(file, 'ERR_DIT_OPTION', /attention heads cannot be seen.*config: \{ heads \}/)
  const ema = await resolveSource(file, configured)
  assert.is(ema.weights, 'ema')
  assert.match(ema.description, /, EMA weights$/)
  assert.equal(ema.notes, [])
  const model = await resolveSource(file, { ...configured, weights: 'model' })
  const expected = await readSafetensors(
    fixture('pt_checkpoint/train_checkpoint_model.safetensors'),
  )
  assert.match(model.description, /, model weights$/)
  for (const { name, parts } of model.dit.tensors) {
    const part = expected.tensors.get(name)
    assert.ok(part)
    assert.equal(materialise({ parts }), materialise({ parts: [part] }), name)
  }
})

test("an official checkpoint of the paper's sizes says all by its shapes", async () => {
  const config = completeConfig('DiT-S/8')
  const layout = safetensorsLayout(
    ditTensors(config).map(({ name, shape }) => ({ name, shape, dtype: 'F16' })),
  )
  const file = path.join(temporaryFolder(), 'DiT-S-8-256x256.safetensors')
  writeFileSync(file, layout.header)
  truncateSync(file, layout.fileBytes) // 66 MB of nothing, which takes no space
  const source = await resolveSource(file)
  assert.equal(source.dit.config, config)
  assert.equal(source.notes, [])
  assert.is(source.dit.tensors[0]?.parts[0]?.dtype, 'F16')
})

test('the trained Fashion-MNIST checkpoint: one channel, pixels, sizes from its arguments', async () => {
  const expected = {
    depth: 4,
    hidden: 128,
    heads: 4,
    patchSize: 2,
    latentSize: [16, 16],
    channels: 1,
    numClasses: 10,
    nullClass: true,
    learnSigma: true,
    mlpHidden: 512,
  }
  const beside = await resolveSource('demo', { demoPath: fixture('fashion_dit/fashion.pt') })
  assert.equal(beside.dit.config, expected)
  const alone = await resolveSource(copy('fashion_dit/fashion.pt', temporaryFolder(), 'fashion.pt'))
  assert.equal(alone.dit.config, expected)
  assert.equal(alone.notes, [])
})

test('sizes that nothing says are assumed, and said so', async () => {
  const file = copy('pt_checkpoint/state_dict.pt', temporaryFolder(), 'dit.pt')
  const source = await resolveSource(file, configured)
  assert.is(source.notes.length, 1)
  assert.match(source.notes[0] ?? '', /assumed 5 and a null class, from a label table of 6 rows/)
  const all = await resolveSource(file, { config: { heads: 2, numClasses: 6 } })
  assert.is(all.dit.config.nullClass, false)
  assert.equal(all.notes, [])
  const said = await resolveSource(file, { config: { heads: 2, nullClass: false } })
  assert.is(said.dit.config.numClasses, 6)
  const wide = await resolveSource(file, { config: { heads: 2, latentSize: [4, 16] } })
  assert.equal(wide.dit.config.latentSize, [4, 16])
})

test('what is given is checked against the shapes', async () => {
  const file = fixture('pt_checkpoint/state_dict.pt')
  const given = (config: ResolveOptions['config'], message: RegExp) =>
    refuse(file, 'ERR_DIT_FORMAT', message, config === undefined ? {} : { config })
  await given(
    { heads: 2, depth: 3 },
    /option config says depth 3, the tensors' shapes say 2\n.*10 missing: blocks\.2\.attn\.qkv\.weight/,
  )
  await given({ heads: 2, depth: 1 }, /10 not part of the model: blocks\.1\.attn/)
  await given(
    { heads: 2, numClasses: 9 },
    /says 9 classes without a null class, the label table has 6 rows/,
  )
  await given({ heads: 2, latentSize: 16 }, /pos_embed is \[1, 16, 24\], expected \[1, 64, 24\]/)
  await given({ heads: 2, learnSigma: false }, /says learnSigma false/)
  await given('DiT-XL/2', /260 missing: .*; and 248 more/)
  await given({ heads: 5 }, /heads \(5\) must divide hidden \(24\)/)
  await refuse(file, 'ERR_DIT_OPTION', /config has no field 'dept'/, {
    config: { dept: 2 } as object,
  })
  await refuse(file, 'ERR_DIT_OPTION', /one of DiT-S\/2.*'DiT-M\/2'/, { config: 'DiT-M/2' })
  await refuse(file, 'ERR_DIT_OPTION', /config\.heads/, { config: { heads: 0 } })
  await refuse(file, 'ERR_DIT_OPTION', /'ema' or 'model'/, { weights: 'best' as 'ema' })
})

/** A safetensors file of the tensors of micro24, changed. */
async function changed(
  change: (tensors: Map<string, { dtype: 'F32' | 'I64'; shape: readonly number[] }>) => void,
  metadata: Record<string, string> = {},
): Promise<string> {
  const { tensors } = await readSafetensors(fixture(micro24))
  const shapes = new Map(
    [...tensors].map(([name, { shape }]) => [name, { dtype: 'F32' as const, shape }]),
  )
  change(shapes)
  const layout = safetensorsLayout(
    [...shapes].map(([name, rest]) => ({ name, ...rest })),
    metadata,
  )
  const file = path.join(temporaryFolder(), 'dit.safetensors')
  writeFileSync(
    file,
    Buffer.concat([layout.header, Buffer.alloc(layout.fileBytes - layout.header.length)]),
  )
  return file
}

test('missing, extra and mis-shaped tensors are all named', async () => {
  const file = await changed((tensors) => {
    tensors.delete('blocks.0.attn.proj.bias')
    tensors.delete('final_layer.linear.bias')
    tensors.set('head.weight', { dtype: 'F32', shape: [2] })
    tensors.set('bn.num_batches_tracked', { dtype: 'I64', shape: [] })
    tensors.set('blocks.1.mlp.fc2.bias', { dtype: 'F32', shape: [25] })
    tensors.set('t_embedder.mlp.0.bias', { dtype: 'I64', shape: [24] })
  })
  await refuse(
    file,
    'ERR_DIT_FORMAT',
    /2 missing: blocks\.0\.attn\.proj\.bias; final_layer\.linear\.bias/,
    configured,
  )
  await refuse(file, 'ERR_DIT_FORMAT', /1 not part of the model: head\.weight\n/, configured)
  await refuse(file, 'ERR_DIT_FORMAT', /fc2\.bias is \[25\], expected \[24\]/, configured)
  await refuse(file, 'ERR_DIT_FORMAT', /t_embedder\.mlp\.0\.bias is I64, expected/, configured)
})

test('absurd sizes are refused', async () => {
  const name = 'blocks.900000.attn.qkv.weight'
  const file = await changed((tensors) => tensors.set(name, { dtype: 'F32', shape: [1] }))
  await refuse(file, 'ERR_DIT_FORMAT', /names block 900000 but has only 33 tensors/, configured)
  const hollow = await changed((tensors) =>
    tensors.set('x_embedder.proj.weight', { dtype: 'F32', shape: [0, 4, 2, 2] }),
  )
  await refuse(hollow, 'ERR_DIT_FORMAT', /has shape \[0, 4, 2, 2\]/, configured)
  const odd = await changed((tensors) =>
    tensors.set('final_layer.linear.weight', { dtype: 'F32', shape: [20, 24] }),
  )
  await refuse(odd, 'ERR_DIT_FORMAT', /5 output channels for 4 input channels/, configured)
})

test('without pos_embed the size of the latent must be said', async () => {
  const file = await changed((tensors) => tensors.delete('pos_embed'))
  await refuse(file, 'ERR_DIT_OPTION', /size of the latent.*config: \{ latentSize \}/, configured)
  const source = await resolveSource(file, { config: { heads: 2, latentSize: [8, 12] } })
  assert.equal(source.dit.config.latentSize, [8, 12])
  assert.is(source.dit.tensors.length, 31)
  await refuse(file, 'ERR_DIT_FORMAT', /multiple of patchSize/, {
    config: { heads: 2, latentSize: 7 },
  })
})

test('a saved model carries its configuration', async () => {
  const { dit, schedule } = await resolveSource(fixture(micro24))
  const saved = {
    config: {
      ...dit.config,
      latentSize: [8, 8] as [number, number],
      numClasses: 6,
      nullClass: false,
    },
    schedule: { ...schedule, kind: 'cosine' as const },
    id2label: { 0: 'boot' },
  }
  const json = JSON.stringify(ownConfig(saved))
  const inside = await changed(() => {}, { [configMetadataKey]: json })
  const beside = await changed(() => {})
  writeFileSync(path.join(path.dirname(beside), 'config.json'), json)
  for (const file of [inside, beside, path.dirname(beside)]) {
    const source = await resolveSource(file)
    assert.equal(source.dit.config, saved.config)
    assert.is(source.schedule.kind, 'cosine')
    assert.equal(source.id2label, { 0: 'boot' })
  }
  const broken = await changed(() => {}, { [configMetadataKey]: '{' })
  await refuse(broken, 'ERR_DIT_FORMAT', /'dit_native' is not valid JSON/)
})

test('the layout for diffusers is read back to the same tensors', async () => {
  const source = await resolveSource(fixture(micro24))
  const byName = new Map(source.dit.tensors.map((item) => [item.name, materialise(item)]))
  const saved = diffusersTensors(source.dit.config)
  const layout = safetensorsLayout(saved.map(({ name, shape }) => ({ name, shape, dtype: 'F32' })))
  const bytes = Buffer.alloc(layout.fileBytes)
  layout.header.copy(bytes)
  for (const [i, { from, rows, shape }] of saved.entries()) {
    const whole = byName.get(from)
    const at = layout.tensors[i]
    assert.ok(whole && at)
    const stride = whole.data.length / (whole.shape[0] ?? 1)
    const part = whole.data.subarray(rows[0] * stride, rows[1] * stride)
    assert.is(
      part.length,
      shape.reduce((count, size) => count * size, 1),
    )
    bytes.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), at.offset)
  }
  const place = temporaryFolder()
  for (const [file, json] of Object.entries(
    diffusersConfigs({
      config: source.dit.config,
      schedule: source.schedule,
      id2label: { 3: 'c' },
    }),
  )) {
    mkdirSync(path.dirname(path.join(place, file)), { recursive: true })
    writeFileSync(path.join(place, file), JSON.stringify(json))
  }
  writeFileSync(path.join(place, 'transformer/diffusion_pytorch_model.safetensors'), bytes)
  const again = await resolveSource(place)
  assert.equal(again.dit.config, source.dit.config)
  assert.equal(again.schedule, source.schedule)
  assert.equal(again.id2label, { 3: 'c' })
  assert.equal(values(again.dit.tensors), values(source.dit.tensors))
  const fixtureNames = (
    await readSafetensors(
      path.join(pipelineFolder, 'transformer/diffusion_pytorch_model.safetensors'),
    )
  ).tensors
  const names = saved.map(({ name }) => name).filter((name) => name !== 'pos_embed.pos_embed')
  assert.equal(names.sort(), [...fixtureNames.keys()].sort())
})

test('embedders that diffusers trained apart are refused', async () => {
  const place = temporaryFolder()
  cpSync(pipelineFolder, place, { recursive: true })
  const file = path.join(place, 'transformer/diffusion_pytorch_model.safetensors')
  const { tensors } = await readSafetensors(file)
  const name = 'transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight'
  const bytes = readFileSync(file)
  bytes.writeFloatLE(9, tensors.get(name)?.offset ?? 0)
  writeFileSync(file, bytes)
  await refuse(
    place,
    'ERR_DIT_FORMAT',
    new RegExp(`${name} differs from the same tensor of block 0`),
  )
})

test('several files: shards, choices, a checkpoint with a VAE beside it', async () => {
  const place = temporaryFolder()
  const w = (name: string) =>
    tensor(storage('torch.FloatStorage', '0', 1), 0, [], []).length && name
  assert.ok(w('x'))
  cpSync(pipelineFolder, place, { recursive: true })
  const transformer = path.join(place, 'transformer')
  const whole = path.join(transformer, 'diffusion_pytorch_model.safetensors')
  const { tensors } = await readSafetensors(whole)
  const data = readFileSync(whole)
  const list = [...tensors]
  for (const [i, part] of [list.slice(0, 20), list.slice(20)].entries()) {
    const layout = safetensorsLayout(
      part.map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
    )
    const pieces = part.map(([, { offset }], j) =>
      data.subarray(offset, offset + (layout.tensors[j]?.bytes ?? 0)),
    )
    const file = `diffusion_pytorch_model-0000${i + 1}-of-00002.safetensors`
    writeFileSync(path.join(transformer, file), Buffer.concat([layout.header, ...pieces]))
  }
  const one = values((await resolveSource(place)).dit.tensors)
  rmSync(whole)
  writeFileSync(path.join(transformer, 'diffusion_pytorch_model.safetensors.index.json'), '{}')
  const two = await resolveSource(place)
  assert.equal(values(two.dit.tensors), one)
  assert.match(two.description, /00001-of-00002\.safetensors and 1 more$/)
  rmSync(path.join(transformer, 'diffusion_pytorch_model-00001-of-00002.safetensors'))
  await refuse(place, 'ERR_DIT_FILE', /does not have all parts of one checkpoint/)

  await refuse(
    fixture('fashion_dit'),
    'ERR_DIT_FILE',
    /several checkpoints \(expected\.safetensors, fashion\.pt\)/,
  )
  const mixed = temporaryFolder()
  copy(micro24, mixed, 'a.safetensors')
  copy('pt_checkpoint/state_dict.pt', mixed, 'a.bin')
  cpSync(path.join(pipelineFolder, 'vae'), path.join(mixed, 'vae'), { recursive: true })
  const both = await resolveSource(mixed, configured)
  assert.is(both.kind, 'safetensors')
  assert.is(both.vae?.config.latentChannels, 4)
})

test('a diffusers folder with .bin files', async () => {
  const place = temporaryFolder()
  cpSync(pipelineFolder, place, { recursive: true })
  for (const part of ['transformer', 'vae']) {
    const file = path.join(place, part, 'diffusion_pytorch_model.safetensors')
    const { tensors } = await readSafetensors(file)
    const bytes = readFileSync(file)
    const storages: Record<string, Uint8Array> = {}
    const items: Record<string, Uint8Array> = {}
    for (const [name, { shape, strides, offset }] of tensors) {
      const count = shape.reduce((product, size) => product * size, 1)
      const key = String(Object.keys(storages).length)
      storages[key] = bytes.subarray(offset, offset + 4 * count)
      items[name] = tensor(storage('torch.FloatStorage', key, count), 0, [...shape], [...strides])
    }
    writeFileSync(
      path.join(place, part, 'diffusion_pytorch_model.bin'),
      torchFile(pickle(dictionary(items)), storages),
    )
    rmSync(file)
  }
  const source = await resolveSource(place)
  const expected = await resolveSource(pipelineFolder)
  assert.is(source.kind, 'diffusers')
  assert.equal(values(source.dit.tensors), values(expected.dit.tensors))
  assert.equal(values(source.vae?.tensors ?? []), values(expected.vae?.tensors ?? []))
})

test('incomplete pipelines', async () => {
  const without = (file: string) => {
    const place = temporaryFolder()
    cpSync(pipelineFolder, place, { recursive: true })
    rmSync(path.join(place, file), { recursive: true })
    return place
  }
  await refuse(without('vae'), 'ERR_DIT_FILE', /no weights in vae\//)
  await refuse(without('transformer/config.json'), 'ERR_DIT_FILE', /no transformer\/config\.json/)
  await refuse(without('scheduler'), 'ERR_DIT_FILE', /no scheduler\/scheduler_config\.json/)
  // The VAE of the option takes the place of the missing one.
  const replaced = await resolveSource(without('vae'), { vae: pipelineFolder })
  assert.is(replaced.vae?.tensors.length, 124)
  assert.is((await resolveSource(without('model_index.json'))).vae?.tensors.length, 124)
})

test('a VAE of other channels does not fit', () =>
  refuse(
    fixture('fashion_dit/fashion.pt'),
    'ERR_DIT_FORMAT',
    /latents of 4 channels, the model takes 1/,
    {
      vae: pipelineFolder,
    },
  ))

test('files that are no model', async () => {
  await refuse('', 'ERR_DIT_OPTION', /path or a Hugging Face id/)
  await refuse(
    path.join(temporaryFolder(), 'none.pt'),
    'ERR_DIT_FILE',
    /no file or folder.*none\.pt.*no Hugging Face id/,
  )
  await refuse('weights/none.pt', 'ERR_DIT_FILE', /no file or folder .*none\.pt/)
  await refuse(temporaryFolder(), 'ERR_DIT_FILE', /has no weights.*It has no files/)
  await refuse(fixture('vae_tiny/modern'), 'ERR_DIT_FORMAT', /weights of a VAE.*option `vae`/)
  await refuse(fixture('fashion_dit/grid.png'), 'ERR_DIT_FORMAT', /no checkpoint/)
  await refuse(
    fixture('pt_checkpoint/odd_tensors.pt'),
    'ERR_DIT_FORMAT',
    /no DiT.*'base', 'transposed'/,
  )
  await refuse(fixture(micro24), 'ERR_DIT_FORMAT', /no AutoencoderKL/, {
    vae: fixture('pt_checkpoint/state_dict.pt'),
  })
  await refuse(fixture('bad_inputs/os_system.pt'), 'ERR_DIT_FORMAT', /posix\.system/)
  const stray = temporaryFolder()
  copy(micro24, stray, 'dit.safetensors')
  writeFileSync(path.join(stray, 'config.json'), '{"name":"something else"}')
  const source = await resolveSource(path.join(stray, 'dit.safetensors'), configured)
  assert.match(source.notes[0] ?? '', /config\.json is no configuration of a DiT/)
  writeFileSync(path.join(stray, 'config.json'), '{"depth":2,"depth":3}')
  await refuse(
    stray,
    'ERR_DIT_FORMAT',
    /config\.json: the file has the key 'depth' twice/,
    configured,
  )
})

test('an unreadable file', async () => {
  if (process.getuid?.() === 0) {
    // root reads anything; a folder in a file's place is as unreadable.
    const place = temporaryFolder()
    mkdirSync(path.join(place, 'model.safetensors'))
    copy(micro24, place, 'a', 'dit.safetensors')
    mkdirSync(path.join(place, 'a', 'config.json'))
    await refuse(
      path.join(place, 'a', 'dit.safetensors'),
      'ERR_DIT_FILE',
      /config\.json: it is a folder/,
    )
    return
  }
  const file = copy(micro24, temporaryFolder(), 'dit.safetensors')
  chmodSync(file, 0)
  await refuse(file, 'ERR_DIT_FILE', /permission denied \(EACCES\)/)
})

test('an abort rejects with its reason', async () => {
  const reason = new Error('enough')
  const result = await resolveSource(pipelineFolder, { signal: AbortSignal.abort(reason) }).catch(
    (error) => error,
  )
  assert.is(result, reason)
})

test.run()
