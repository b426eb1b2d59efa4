// Spans and metrics as an application's OpenTelemetry SDK gets them.
// timeout: 120s
import { AsyncLocalStorage } from 'node:async_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type Context,
  context,
  metrics,
  ROOT_CONTEXT,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api'
import {
  AggregationTemporality,
  type DataPoint,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics'
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT } from '../lib/index.js'
import { runModule } from './helpers/child.js'
import { fixture, rejects } from './helpers/files.js'
import { collect, ofType, quick, some, tinyModel } from './helpers/training.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const pipeline = fixture('diffusers_pipeline')

// What an application does when it starts.
const spans = new InMemorySpanExporter()
trace.setGlobalTracerProvider(
  new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(spans)] }),
)
const storage = new AsyncLocalStorage<Context>()
context.setGlobalContextManager({
  active: () => storage.getStore() ?? ROOT_CONTEXT,
  with: (active, work, self, ...args) =>
    storage.run(active, () => work.call(self as never, ...args)),
  bind: (_, target) => target,
  enable: () => context.disable() as never,
  disable: () => undefined as never,
})
const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e8 })
metrics.setGlobalMeterProvider(new MeterProvider({ readers: [reader] }))

/** The spans since the last call of this, in the order in which they ended. */
function taken(): ReadableSpan[] {
  const all = [...spans.getFinishedSpans()]
  spans.reset()
  return all
}

const named = (all: ReadableSpan[], name: string) => all.filter((span) => span.name === name)
const milliseconds = ([seconds, nanos]: [number, number]) => seconds * 1e3 + nanos / 1e6

/** Every metric's points, by name. */
async function measured(): Promise<Map<string, DataPoint<unknown>[]>> {
  exporter.reset()
  await reader.forceFlush()
  const scopes = exporter.getMetrics().flatMap((resource) => resource.scopeMetrics)
  return new Map(
    scopes.flatMap(({ scope, metrics }) => {
      assert.is(scope.name, 'dit-native')
      return metrics.map(({ descriptor, dataPoints }) => [
        descriptor.name,
        dataPoints as DataPoint<unknown>[],
      ])
    }),
  )
}

test('spans of a load and a call, within the span of whoever called', async () => {
  const tracer = trace.getTracer('an application')
  const outer = tracer.startSpan('outer')
  await context.with(trace.setSpan(context.active(), outer), async () => {
    await using dit = await DiT.load(pipeline, fp32)
    await dit.sample([1, 2, 3], { steps: 5, seed: 7, guidance: 3, priority: 2 })
    await dit.sample(1, { steps: 2, output: 'latent', sampler: 'ddim' })
  })
  outer.end()
  const all = taken()
  const [load] = named(all, 'dit.load')
  assert.is(load?.parentSpanContext?.spanId, outer.spanContext().spanId)
  assert.is(load?.attributes['dit.device'], 'cpu')
  assert.is(load?.attributes['dit.precision'], 'fp32')
  assert.is(load?.attributes['dit.source.kind'], 'diffusers')
  assert.match(String(load?.attributes['gen_ai.request.model']), /diffusers_pipeline/)
  assert.is(load?.instrumentationScope.name, 'dit-native')
  assert.match(load?.instrumentationScope.version ?? '', /^\d+\.\d+\.\d+/)

  const [first, second] = named(all, 'dit.sample') as [ReadableSpan, ReadableSpan]
  assert.is(first.parentSpanContext?.spanId, outer.spanContext().spanId)
  assert.is(first.status.code, SpanStatusCode.UNSET)
  const { 'gen_ai.request.model': model, ...attributes } = first.attributes
  assert.match(String(model), /diffusers_pipeline/)
  assert.equal(attributes, {
    'gen_ai.operation.name': 'generate_content',
    'gen_ai.provider.name': 'dit-native',
    'gen_ai.output.type': 'image',
    'gen_ai.request.seed': 7,
    'dit.source.kind': 'diffusers',
    'dit.device': 'cpu',
    'dit.precision': 'fp32',
    'dit.images': 3,
    'dit.steps': 5,
    'dit.sampler': 'dpm++',
    'dit.guidance': 3,
    'dit.priority': 2,
    'dit.output': 'image',
  })
  assert.is(second.attributes['dit.output'], 'latent')
  assert.is(second.attributes['dit.sampler'], 'ddim')

  const phases = (parent: ReadableSpan) =>
    all.filter((span) => span.parentSpanContext?.spanId === parent.spanContext().spanId)
  assert.equal(
    phases(first).map(({ name }) => name),
    ['dit.sample.queue', 'dit.sample.steps', 'dit.sample.decode'],
  )
  assert.equal(
    phases(second).map(({ name }) => name),
    ['dit.sample.queue', 'dit.sample.steps'],
  )
  // They follow one another, from the beginning of the call to its end at the most.
  let at = milliseconds(first.startTime)
  for (const phase of phases(first)) {
    const start = milliseconds(phase.startTime)
    assert.ok(
      Math.abs(start - at) < 0.01,
      `${phase.name} begins ${start - at} ms after what was before`,
    )
    assert.ok(milliseconds(phase.duration) > 0, phase.name)
    at = milliseconds(phase.endTime)
  }
  assert.ok(at <= milliseconds(first.endTime) + 1)
})

/** Far more work than a test lasts. */
const endless = new Array(50).fill(1)

test('the wait for a lane is in the span of the queue and in the timings', async () => {
  await using dit = await DiT.load(pipeline, { ...fp32, maxBatch: 1 })
  const controller = new AbortController()
  const { signal } = controller
  const long = dit.sample(endless, { steps: 900, signal }).catch((reason) => reason)
  while (dit.stats().lanes === 0) await sleep(1)
  taken()
  const waiting = dit.stream(2, { steps: 1, priority: -1 })
  const first = waiting.next()
  await sleep(50)
  controller.abort('enough')
  assert.is(await long, 'enough')
  assert.is((await first).value?.type, 'progress')
  const last = (await waiting.next()).value
  assert.is((await waiting.next()).done, true)
  const queueSeconds = last?.type === 'images' ? last.queueSeconds : 0
  assert.ok(queueSeconds >= 0.045, `${queueSeconds} s`)
  const [queue] = named(taken(), 'dit.sample.queue') as [ReadableSpan]
  assert.ok(Math.abs(milliseconds(queue.duration) - 1000 * queueSeconds) < 0.01)
})

test('how a call failed; an abort is no failure', async () => {
  await using dit = await DiT.load(pipeline, { ...fp32, maxBatch: 1, maxQueue: 0 })
  taken()
  const noise = { data: new Float32Array(4 * 64).fill(Number.NaN), shape: [1, 4, 8, 8] }
  await rejects(() => dit.sample(0, { noise, steps: 2 }), 'ERR_DIT_NONFINITE', /not a number/)
  const [failed] = named(taken(), 'dit.sample')
  assert.is(failed?.status.code, SpanStatusCode.ERROR)
  assert.match(failed?.status.message ?? '', /not a number/)
  assert.is(failed?.attributes['error.type'], 'ERR_DIT_NONFINITE')

  // The only lane is taken, and nobody may wait.
  for await (const _ of dit.stream(endless, { steps: 900 })) {
    await rejects(() => dit.sample(1), 'ERR_DIT_BUSY', /./)
    break
  }
  const [refused] = named(taken(), 'dit.sample')
  assert.is(refused?.attributes['error.type'], 'ERR_DIT_BUSY')

  while (dit.stats().lanes + dit.stats().waiting > 0) await sleep(1)
  taken()
  for await (const _ of dit.stream(endless, { steps: 900 })) break
  while (dit.stats().lanes + dit.stats().waiting > 0) await sleep(1)
  const controller = new AbortController()
  const call = dit.sample(endless, {
    steps: 900,
    signal: controller.signal,
    onProgress: () => controller.abort(new Error('enough')),
  })
  await call.then(
    () => assert.unreachable(),
    () => {},
  )
  const [left, aborted] = named(taken(), 'dit.sample')
  for (const span of [left, aborted]) {
    assert.is(span?.status.code, SpanStatusCode.UNSET)
    assert.is(span?.attributes['dit.cancelled'], true)
    assert.is(span?.attributes['error.type'], undefined)
  }
  await rejects(() => DiT.load('/nowhere'), 'ERR_DIT_FILE', /nowhere/)
  const [load] = named(taken(), 'dit.load')
  assert.is(load?.attributes['error.type'], 'ERR_DIT_FILE')
  assert.is(load?.status.code, SpanStatusCode.ERROR)
})

test('the span of a training', async () => {
  await using dit = await tinyModel()
  taken()
  const events = await collect(dit.train(some(8), { ...quick, steps: 3 }))
  const steps = ofType(events, 'step').at(-1)?.step
  const [span] = named(taken(), 'dit.train')
  assert.is(steps, 3)
  assert.is(span?.attributes['dit.step'], 3)
  assert.is(span?.status.code, SpanStatusCode.UNSET)
})

test('metrics: what a model does and has done, until it is closed', async () => {
  const dit = await DiT.load(pipeline, { ...fp32, maxBatch: 2, maxQueue: 4 })
  // A call of many images, cancelled when it was measured.
  const long = new AbortController()
  const many = { steps: 900, signal: long.signal }
  const cancelledCall = dit.sample(endless, many).catch((reason) => reason)
  while (dit.stats().lanes < 2) await sleep(1)
  const during = await measured()
  long.abort('enough')
  assert.is(await cancelledCall, 'enough')
  while (dit.stats().lanes > 0) await sleep(1)
  await rejects(
    () => dit.sample([0, 1, 2, 3, 4], { steps: 3, deadline: 1e-6 }),
    'ERR_DIT_DEADLINE',
    /./,
  )
  for (const label of [0, 1, 2]) await dit.sample(label, { steps: 20 })
  const after = await measured()
  // Points of models that earlier tests closed stay, with what was measured last.
  const limits = after.get('dit.lanes.limit') ?? []
  const id = limits.find((point) => point.value === 2)?.attributes['dit.model.id']
  assert.match(String(id), /^[0-9a-f]{8}$/)
  const ours = (from: typeof after | undefined, name: string) =>
    (from?.get(name) ?? []).filter((point) => point.attributes['dit.model.id'] === id)
  const value = (from: typeof after | undefined, name: string, attributes = {}) => {
    const points = ours(from, name)
    const wanted = points.filter((point) =>
      Object.entries(attributes).every(([key, is]) => point.attributes[key] === is),
    )
    assert.is(wanted.length, 1, name)
    return wanted[0]?.value as number
  }
  assert.is(value(during, 'dit.lanes.used'), 2)
  assert.is(value(during, 'dit.queue.images'), 48)
  assert.is(value(after, 'dit.lanes.limit'), 2)
  assert.is(value(after, 'dit.queue.images'), 0)
  const { images, rounds, roundSeconds, refused, cancelled } = dit.stats()
  assert.is(images, 3)
  assert.is(value(after, 'dit.images'), images)
  assert.is(value(after, 'dit.rounds'), rounds)
  assert.is(value(after, 'dit.round.duration'), roundSeconds)
  assert.ok(rounds >= 60 && roundSeconds > 0)
  assert.equal([refused.deadline, refused.busy, cancelled], [1, 0, 1])
  assert.is(value(after, 'dit.calls.refused', { 'error.type': 'ERR_DIT_DEADLINE' }), 1)
  assert.is(value(after, 'dit.calls.refused', { 'error.type': 'ERR_DIT_BUSY' }), 0)
  assert.is(value(after, 'dit.calls.cancelled'), 1)
  const memory = dit.memory()
  for (const part of ['weights', 'vae', 'activations', 'training'] as const) {
    assert.is(value(after, 'dit.memory.usage', { 'dit.memory.part': part }), memory[part])
  }
  const [point] = ours(after, 'dit.images')
  assert.is(point?.attributes['dit.device'], 'cpu')
  assert.is(point?.attributes['gen_ai.provider.name'], 'dit-native')
  const here = ours(after, 'gen_ai.client.operation.duration')
  const counts = here.map(({ attributes, value }) => [
    attributes['error.type'],
    (value as { count: number }).count,
  ])
  assert.equal(counts.sort(), [
    [undefined, 3],
    ['ERR_DIT_DEADLINE', 1],
  ])

  const waits = ours(after, 'dit.queue.duration').map(({ value }) => value as { count: number })
  assert.equal(
    waits.map(({ count }) => count),
    [3],
  )

  // A second model has points of its own; a closed one holds nothing.
  await using second = await DiT.load(pipeline, { ...fp32, maxBatch: 3 })
  const both = (await measured()).get('dit.lanes.limit')?.map(({ value }) => value)
  assert.ok(both?.includes(2) && both.includes(3), `${both}`)
  await dit.close()
  const closed = await measured()
  assert.is(value(closed, 'dit.lanes.limit'), 0)
  assert.is(value(closed, 'dit.memory.usage', { 'dit.memory.part': 'weights' }), 0)
  assert.is(value(closed, 'dit.images'), 3)
  await second.close()
})

test('a model that nobody refers to is collected, though it is measured', async () => {
  const { stdout, stderr } = await runModule(
    `
    import { metrics } from '@opentelemetry/api'
    import { AggregationTemporality, InMemoryMetricExporter, MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics'
    import { setTimeout as sleep } from 'node:timers/promises'
    import { DiT } from './lib/index.ts'
    const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
    const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e8 })
    metrics.setGlobalMeterProvider(new MeterProvider({ readers: [reader] }))
    const points = async () => {
      exporter.reset()
      await reader.forceFlush()
      const all = exporter.getMetrics()[0]?.scopeMetrics[0]?.metrics ?? []
      return all.find(({ descriptor }) => descriptor.name === 'dit.lanes.limit')?.dataPoints[0]?.value
    }
    let model = new WeakRef(await DiT.load(${JSON.stringify(pipeline)}, { threads: 1 }))
    const before = await points()
    for (let i = 0; i < 20 && model.deref(); i++) {
      await sleep(20)
      gc()
    }
    console.log(JSON.stringify([before, model.deref() === undefined, await points()]))
    process.exit()
    `,
    '--expose-gc',
  )
  assert.equal(JSON.parse(stdout), [4, true, 0], stderr)
})

test.run()
