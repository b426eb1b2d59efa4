import { readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiTError } from '../lib/errors.js'
import { completeConfig, presets } from '../lib/formats/dit_config.js'
import { ditTensors } from '../lib/formats/dit_names.js'
import { countParameters } from '../lib/formats/names.js'
import { resolveSource } from '../lib/formats/source.js'
import { contiguousStrides, type TensorMap } from '../lib/formats/tensor.js'
import { inferVaeConfig, parseVaeJson } from '../lib/formats/vae_config.js'
import { vaeShapes, vaeTensors } from '../lib/formats/vae_names.js'
import { fixture, pipelineWith, rejects } from './helpers/files.js'

const configurations: [string, Record<string, unknown>, RegExp][] = [
  [
    'transformer/config.json',
    { norm_type: 'ada_norm_single' },
    /config\.json: norm_type: .*ada_norm_zero/,
  ],
  ['transformer/config.json', { _class_name: 'PixArtTransformer2DModel' }, /expected a DiT/],
  ['transformer/config.json', { num_layers: 'two' }, /num_layers/],
  ['transformer/config.json', { num_layers: 3 }, /says depth 3, the tensors' shapes say 2/],
  ['transformer/config.json', { num_embeds_ada_norm: 7 }, /says 7 classes/],
  ['transformer/config.json', { sample_size: [8, 9] }, /multiple of patchSize/],
  ['vae/config.json', { norm_num_groups: 5 }, /16 channels cannot be normalised in 5 groups/],
  ['vae/config.json', { act_fn: 'relu' }, /act_fn/],
  ['vae/config.json', { down_block_types: ['AttnDownEncoderBlock2D'] }, /down_block_types/],
  ['vae/config.json', { latents_mean: [0] }, /latents_mean/],
  [
    'vae/config.json',
    { block_out_channels: [16, 32, 32] },
    /missing: .*down_blocks\.1\.downsamplers/,
  ],
  ['vae/config.json', { scaling_factor: 0 }, /scaling_factor/],
  ['scheduler/scheduler_config.json', { beta_schedule: 'scaled_linear' }, /beta_schedule/],
  ['scheduler/scheduler_config.json', { prediction_type: 'v_prediction' }, /prediction_type/],
  ['scheduler/scheduler_config.json', { trained_betas: [0.1] }, /trained_betas/],
  ['scheduler/scheduler_config.json', { beta_start: 0.5 }, /beta_start must not exceed/],
  ['model_index.json', { id2label: { a: 'b' } }, /id2label/],
  ['model_index.json', { transformer: [null, null] }, /pipeline without a transformer/],
]
for (const [file, change, message] of configurations) {
  test(`refuses ${file} with ${JSON.stringify(change)}`, () =>
    rejects(
      () => resolveSource(pipelineWith(file, (json) => Object.assign(json, change))),
      'ERR_DIT_FORMAT',
      message,
    ))
}

test('configurations that differ and are fine', async () => {
  const cosine = await resolveSource(
    pipelineWith('scheduler/scheduler_config.json', (json) =>
      Object.assign(json, { beta_schedule: 'squaredcos_cap_v2', num_train_timesteps: 500 }),
    ),
  )
  assert.is(cosine.schedule.kind, 'cosine')
  assert.is(cosine.schedule.steps, 500)
  const every = await resolveSource(
    pipelineWith('transformer/config.json', (json) =>
      Object.assign(json, {
        num_embeds_ada_norm: 6,
        _class_name: 'DiTTransformer2DModel',
        norm_type: null,
      }),
    ),
  )
  assert.is(every.dit.config.nullClass, false)
  const scaled = await resolveSource(
    pipelineWith('vae/config.json', (json) =>
      Object.assign(json, { scaling_factor: 0.5, shift_factor: 0.1 }),
    ),
  )
  assert.is(scaled.vae?.config.shiftFactor, 0.1)
  const bare = pipelineWith('model_index.json', (json) => delete json.vae)
  rmSync(path.join(bare, 'vae'), { recursive: true })
  assert.is((await resolveSource(bare)).vae, undefined)
})

test('the presets of the paper', () => {
  assert.is(presets.size, 12)
  const xl = completeConfig('DiT-XL/2')
  assert.equal(xl, {
    depth: 28,
    hidden: 1152,
    heads: 16,
    patchSize: 2,
    latentSize: [32, 32],
    channels: 4,
    numClasses: 1000,
    nullClass: true,
    learnSigma: true,
    mlpHidden: 4608,
  })
  // What the official DiT-XL/2 counts, its position table included.
  assert.is(countParameters(ditTensors(xl)), 675_129_632)
  assert.equal(
    completeConfig({ depth: 1, hidden: 8, heads: 2, latentSize: [2, 4] }).latentSize,
    [2, 4],
  )
  assert.equal(completeConfig(xl), xl)
})

test('configurations that fit no DiT', () => {
  const refuse = (config: unknown, message: RegExp) =>
    assert.throws(
      () => completeConfig(config),
      (error: unknown) =>
        error instanceof DiTError && error.code === 'ERR_DIT_OPTION' && message.test(error.message),
    )
  const tiny = { depth: 1, hidden: 8, heads: 2 }
  refuse({ hidden: 8, heads: 2 }, /Expected a number for config\.depth but got undefined/)
  refuse({ ...tiny, heads: 3 }, /heads \(3\) must divide hidden \(8\)/)
  refuse({ ...tiny, hidden: 6 }, /multiple of 4/)
  refuse({ ...tiny, latentSize: 5 }, /latentSize \(5×5\) must be a multiple of patchSize \(2\)/)
  refuse({ ...tiny, latentSize: [2] }, /config\.latentSize/)
  refuse({ ...tiny, depth: 1.5 }, /config\.depth/)
  refuse({ ...tiny, depth: 1e9 }, /config\.depth/)
  refuse({ ...tiny, learnSigma: 1 }, /config\.learnSigma/)
  refuse({ ...tiny, size: 1 }, /no field 'size'/)
  refuse(null, /preset's name or an object for config but got null/)
  refuse(7, /preset's name or an object for config but got 7/)
})

/** Names and shapes of a full-size model, as the reference's listing has them. */
function listing(file: string): Map<string, number[]> {
  const { tensors } = JSON.parse(readFileSync(fixture('full_size', file), 'utf8'))
  return new Map(
    Object.entries(tensors as Record<string, { shape: number[] }>).map(([name, { shape }]) => [
      name,
      shape,
    ]),
  )
}
const sorted = (tensors: Iterable<readonly [string, readonly number[]]>) => [...tensors].sort()

test('the tensors of DiT-XL/2 and of the Stable Diffusion VAE', () => {
  const dit = ditTensors(completeConfig('DiT-XL/2'))
  assert.equal(sorted(dit.map(({ name, shape }) => [name, shape])), sorted(listing('dit_xl2.json')))
  const file = fixture('full_size/sd_vae_config.json')
  const vae = vaeTensors(parseVaeJson(JSON.parse(readFileSync(file, 'utf8')), file))
  assert.equal(sorted(vae.map(({ name, shape }) => [name, shape])), sorted(listing('sd_vae.json')))
})

test('the sizes of a VAE are read off its shapes', () => {
  const tensors: TensorMap = new Map()
  for (const [name, shape] of listing('sd_vae.json')) {
    tensors.set(name, {
      file: 'f',
      offset: 0,
      dtype: 'F32',
      shape,
      strides: contiguousStrides(shape),
    })
  }
  const file = fixture('full_size/sd_vae_config.json')
  const said = parseVaeJson(JSON.parse(readFileSync(file, 'utf8')), file)
  assert.equal(inferVaeConfig(vaeShapes('f', tensors), 'f'), said)
})

test.run()
