// The binary by itself: what bindings.d.ts promises, whatever it is given.
// timeout: 120s
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readSafetensors } from '../lib/formats/safetensors.js'
import { native } from '../lib/native.js'
import { open, spec } from './helpers/addon.js'
import { runModule } from './helpers/child.js'
import { fixture } from './helpers/files.js'
import { readPart } from './helpers/tensors.js'

function code(action: () => unknown): string | undefined {
  try {
    action()
  } catch (error) {
    return (error as { code?: string }).code
  }
  return 'nothing was thrown'
}

test('wrong arguments throw and do not crash', async () => {
  const { Model, schedule } = native()
  assert.throws(() => new Model(undefined as never), /listener/)
  assert.throws(() => (Model as unknown as () => void)(), /./)
  const { model, last } = open()
  const wrong: unknown[] = [
    undefined,
    null,
    1,
    {},
    { ...spec, device: 1 },
    { ...spec, precision: 'fp64' },
    { ...spec, threads: 1.5 },
    { ...spec, dit: { ...spec.dit, seed: -1n } },
    { ...spec, dit: { ...spec.dit, seed: 2n ** 64n } },
    { ...spec, dit: { ...spec.dit, tensors: [{ name: 'x', parts: [null] }] } },
    { ...spec, dit: { ...spec.dit, config: { ...spec.dit.config, latentSize: [4] } } },
    { ...spec, schedule: { ...spec.schedule, kind: 'quadratic' } },
  ]
  for (const value of wrong)
    assert.is(
      code(() => model.load(value as never)),
      'ERR_DIT_INTERNAL',
    )
  const throwing = Object.defineProperty({ ...spec }, 'device', {
    get() {
      throw new RangeError('from a getter')
    },
  })
  assert.throws(() => model.load(throwing as never), /from a getter/)
  assert.is(
    code(() => model.decode({ n: 1, height: 1, width: 1, latents: [1] } as never)),
    'ERR_DIT_INTERNAL',
  )
  assert.is(
    code(() => model.cancel('1' as never)),
    'ERR_DIT_INTERNAL',
  )
  assert.is(
    code(() => schedule(spec.schedule, 5 as never)),
    'ERR_DIT_INTERNAL',
  )
  assert.is(
    code(() => schedule(spec.schedule, 'ddim300')),
    'ERR_DIT_OPTION',
  )
  const early = await last(
    model.sample({
      sampler: 'ddim',
      spacing: '2',
      eta: 0,
      clip: false,
      labels: new Int32Array(1),
      vectors: null,
      seeds: new BigUint64Array(1),
      noise: null,
      stepNoise: null,
      guidance: 1,
      guidanceChannels: 1,
      guidanceInterval: [0, 1],
      latentOnly: true,
      previewEvery: 0,
      previewKind: 'linear',
      call: 0,
    }),
  )
  assert.is(early.kind, 'failed') // no model is loaded
  await last(model.close())
  assert.is(
    code(() => model.load(spec)),
    'ERR_DIT_CLOSED',
  )
  assert.is(
    code(() => model.info()),
    'ERR_DIT_CLOSED',
  )
  model.cancel(1)
  assert.type(model.close, 'function')
})

test('a weight file that is missing or too short is a failed job', async () => {
  const { model, last } = open()
  const missing = { file: '/nowhere/x', offset: 0, dtype: 'F32' as const, shape: [1], strides: [1] }
  const tensors = [{ name: 'pos_embed', parts: [missing] }]
  const event = await last(model.load({ ...spec, dit: { ...spec.dit, tensors } }))
  assert.is(event.kind, 'failed')
  if (event.kind === 'failed') assert.is(event.code, 'ERR_DIT_FILE', event.message)
  await last(model.close())
})

test('schedule: the tables are those of the reference', async () => {
  const file = fixture('diffusion_schedule/schedules.safetensors')
  const { tensors } = await readSafetensors(file)
  assert.is(tensors.size, 10 * 14)
  for (const [name, part] of tensors) {
    const [respacing = '', field = ''] = name.split('/')
    const made = native().schedule(spec.schedule, respacing === 'full' ? '1000' : respacing)
    const table = made[field.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase())]
    assert.ok(table, `there is no table ${field}`)
    for (const [i, want] of readPart(part).entries()) {
      const got = table[i] as number
      const near = field === 'timestep_map' ? 0 : 1e-12 * Math.abs(want)
      assert.ok(Math.abs(got - want) <= near, `${name}[${i}]: ${got}, expected ${want}`)
    }
    assert.is(table.length, part.shape[0])
  }
})

// ---- what a listener throws, and how a process or a worker ends ----

const script = `
  import { native } from './lib/native.ts'
  const spec = JSON.parse(${JSON.stringify(JSON.stringify({ ...spec, dit: { ...spec.dit, seed: 0 } }))})
  spec.dit.seed = 1n
`

for (const thrown of ['new Error("from the listener")', 'null', 'undefined', '"text"']) {
  test(`a listener that throws ${thrown} makes an uncaught exception`, async () => {
    const ended = await runModule(`${script}
      process.on('uncaughtException', (error) => {
        console.log('uncaught', String(error))
        model.close()
      })
      let events = 0
      const model = new (native().Model)((event) => {
        if (events++ === 0) throw ${thrown}
        if (event.kind === 'done') console.log('done', event.job)
      })
      model.load(spec)
    `)
    assert.is(ended.status, 0, ended.stderr)
    const text = thrown.startsWith('new') ? 'Error: from the listener' : thrown.replaceAll('"', '')
    assert.ok(ended.stdout.startsWith(`uncaught ${text}\n`), ended.stdout)
    assert.match(ended.stdout, /done 2\n$/)
  })
}

test('without a handler, what a listener throws ends the process with its message', async () => {
  const ended = await runModule(`${script}
    const model = new (native().Model)(() => { throw new Error('from the listener') })
    model.load(spec)
  `)
  assert.is(ended.status, 1, ended.stderr)
  assert.match(ended.stderr, /Error: from the listener/)
})

test('an open model does not keep the process alive, a job does', async () => {
  const ended = await runModule(`${script}
    const model = new (native().Model)((event) => {
      if (event.kind === 'done') console.log('loaded')
    })
    model.load(spec)
  `)
  assert.is(ended.status, 0, ended.stderr)
  assert.is(ended.stdout, 'loaded\n')
})

test('a model that nobody holds any more is collected, and its thread ends', async () => {
  const ended = await runModule(
    `${script}
    import { readdirSync } from 'node:fs'
    import { setTimeout } from 'node:timers/promises'
    const threads = () => readdirSync('/proc/self/task').length
    const loaded = () => new Promise((resolve) => {
      const model = new (native().Model)((event) => event.kind === 'done' && resolve(event))
      model.load(spec)
    })
    await loaded()
    const one = threads()
    for (let i = 0; i < 20; i++) await loaded()
    const many = threads()
    for (let i = 0; i < 100 && threads() > one; i++) {
      gc()
      await setTimeout(10)
    }
    console.log(JSON.stringify({ grew: many - one, left: threads() - one }))
  `,
    '--expose-gc',
  )
  assert.is(ended.status, 0, ended.stderr)
  const { grew, left } = JSON.parse(ended.stdout)
  assert.ok(grew >= 10 && left <= 0, ended.stdout)
})

test.run()
