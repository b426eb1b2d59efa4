// Spans and metrics, through @opentelemetry/api: they go to whatever SDK the application has
// registered, and nowhere without one. The names are listed in docs/telemetry.md.

import { randomBytes } from 'node:crypto'
import { createRequire } from 'node:module'
import path from 'node:path'
import {
  type Attributes,
  type BatchObservableResult,
  context,
  metrics,
  type Observable,
  type Span,
  SpanStatusCode,
  type Tracer,
  trace,
} from '@opentelemetry/api'
import { DiTError, type DiTErrorCode } from './errors.js'
import type { Timings } from './events.js'
import type { MemoryInfo, ModelStats } from './model_info.js'
import type { Output, SampleOptions } from './options.js'
import { packageRoot } from './root.cjs'
import type { SamplePlan } from './sampling.js'
import type { TrainEvent } from './train/events.js'

const scope = 'dit-native'
const requireFile = createRequire(path.join(packageRoot, 'package.json'))

const version = (requireFile('./package.json') as { version: string }).version

/** Goes to the SDK that is registered when a span begins. */
const newTracer = (): Tracer => trace.getTracer(scope, version)

/** What is told of every model. @internal */
export interface Described {
  readonly source: {
    readonly kind: string
    readonly description: string
    readonly hub?: { readonly id: string }
  }
  readonly device: string
  readonly precision: string
}

/** What is measured of a model while it is open. @internal */
export interface Measured {
  stats(): ModelStats
  memory(): MemoryInfo
}

const nothing = { weights: 0, vae: 0, activations: 0, training: 0 }

interface TracedOptions {
  attributes?: Attributes
  signal?: AbortSignal | undefined
  /** In milliseconds since 1970; default: now. */
  startTime?: number
  tracer?: Tracer
}

/** Runs `work` within a span, which tells how it ended. @internal */
export async function traced<T>(
  name: string,
  { attributes = {}, signal, startTime = Date.now(), tracer = newTracer() }: TracedOptions,
  work: (span: Span) => Promise<T>,
): Promise<T> {
  const span = tracer.startSpan(name, { attributes, startTime })
  try {
    return await context.with(trace.setSpan(context.active(), span), () => work(span))
  } catch (error) {
    setError(span, error, signal)
    throw error
  } finally {
    span.end()
  }
}

/** A training within a span, from its first step to its end. @internal */
export async function* tracedTraining(
  model: Described,
  events: AsyncIterable<TrainEvent>,
): AsyncGenerator<TrainEvent, void, undefined> {
  const attributes = modelAttributes(model)
  const span = newTracer().startSpan('dit.train', { attributes })
  try {
    for await (const event of events) {
      const { type } = event
      if (type === 'step') span.setAttribute('dit.step', event.step)
      if (type === 'checkpoint' || type === 'rollback') {
        span.addEvent(`dit.train.${type}`, { 'dit.step': event.step })
      }
      yield event
    }
  } catch (error) {
    setError(span, error, undefined)
    throw error
  } finally {
    span.end()
  }
}

/** An abort is what the caller wanted, so it is no error. */
function setError(span: Span, error: unknown, signal: AbortSignal | undefined): void {
  if (signal?.aborted && error === signal.reason) {
    span.setAttribute('dit.cancelled', true)
    return
  }
  span.setAttribute('error.type', errorType(error))
  const message = error instanceof Error ? error.message : String(error)
  span.setStatus({ code: SpanStatusCode.ERROR, message })
}

function errorType(error: unknown): string {
  if (error instanceof DiTError) return error.code
  return error instanceof Error ? error.name : '_OTHER'
}

/** Attributes of a model, of its spans and of its metrics. @internal */
export function modelAttributes({ source, device, precision }: Described): Attributes {
  return {
    'gen_ai.provider.name': scope,
    'gen_ai.request.model': source.hub?.id ?? source.description,
    'dit.source.kind': source.kind,
    'dit.device': device,
    'dit.precision': precision,
  }
}

const operation = { 'gen_ai.operation.name': 'generate_content' }
// Those that the semantic conventions advise for durations of generative models, in seconds.
const explicitBucketBoundaries = Array.from({ length: 14 }, (_, i) => 0.01 * 2 ** i)

/**
 * The spans and the metrics of one model. A provider of metrics has to be registered before the model
 * is loaded, as its API demands; one of spans at any time.
 *
 * @internal
 */
export class Telemetry {
  readonly #tracer = newTracer()
  readonly #span: Attributes
  readonly #metric: Attributes
  readonly #call: Attributes
  readonly #duration
  readonly #queue
  readonly #stop: () => void

  constructor(model: Described & Measured) {
    this.#span = { ...modelAttributes(model), ...operation }
    const id = randomBytes(4).toString('hex')
    this.#metric = { ...modelAttributes(model), 'dit.model.id': id }
    this.#call = { ...this.#metric, ...operation }
    const meter = metrics.getMeter(scope, version)
    const advice = { explicitBucketBoundaries }
    this.#duration = meter.createHistogram('gen_ai.client.operation.duration', {
      description: 'Duration of a call that makes images',
      unit: 's',
      advice,
    })
    this.#queue = meter.createHistogram('dit.queue.duration', {
      description: 'Time from a call to the first step of its first image',
      unit: 's',
      advice,
    })
    this.#stop = observe(model, this.#metric)
  }

  /** A call that makes images. */
  async sample<T extends Timings>(
    { call, made, parts }: SamplePlan,
    { output = 'image', signal }: Pick<SampleOptions<Output>, 'output' | 'signal'>,
    work: () => Promise<T>,
  ): Promise<T> {
    const [first] = parts
    const seed = made[0]?.seed
    const begin = performance.now()
    const startTime = Date.now()
    const tracer = this.#tracer
    const attributes = {
      ...this.#span,
      'dit.images': call.images,
      'dit.steps': call.steps,
      'dit.priority': call.priority,
      ...(first && {
        'dit.sampler': first.request.sampler,
        'dit.guidance': first.request.guidance,
      }),
      'dit.output': output,
      ...(output === 'image' && { 'gen_ai.output.type': output }),
      ...(typeof seed === 'number' && { 'gen_ai.request.seed': seed }),
    }
    const record = (more?: Attributes) => {
      const seconds = (performance.now() - begin) / 1000
      this.#duration.record(seconds, more ? { ...this.#call, ...more } : this.#call)
    }
    return traced('dit.sample', { attributes, signal, startTime, tracer }, async (span) => {
      try {
        const done = await work()
        record()
        this.#queue.record(done.queueSeconds, this.#metric)
        if (span.isRecording()) tellPhases(tracer, span, startTime, done, output)
        return done
      } catch (error) {
        const cancelled = signal?.aborted && error === signal.reason
        if (!cancelled) record({ 'error.type': errorType(error) })
        throw error
      }
    })
  }

  /** The model is closed: nothing of it is measured any more. */
  close(): void {
    this.#stop()
  }
}

/**
 * What a call did, as spans: it waited, made its steps, and decoded. Images of one call that are
 * finished at different times decode between others' steps; the spans have the sums, end to end.
 */
function tellPhases(
  tracer: Tracer,
  span: Span,
  began: number,
  timings: Timings,
  output: string,
): void {
  const { queueSeconds, sampleSeconds, decodeSeconds } = timings
  const within = trace.setSpan(context.active(), span)
  let startTime = began
  const tell = (name: string, seconds: number) => {
    const phase = tracer.startSpan(name, { startTime }, within)
    startTime += 1000 * seconds
    phase.end(startTime)
  }
  tell('dit.sample.queue', queueSeconds)
  tell('dit.sample.steps', sampleSeconds)
  if (output === 'image') tell('dit.sample.decode', decodeSeconds)
}

/**
 * Measures a model whenever an SDK asks, until that model is closed or nobody refers to it any more:
 * then its last measurement says that it holds nothing. Returns what ends it.
 */
function observe(measured: Measured, attributes: Attributes): () => void {
  const model = new WeakRef(measured)
  let ended = false
  const meter = metrics.getMeter(scope, version)
  const gauge = (name: string, unit: string, description: string) =>
    meter.createObservableGauge(name, { unit, description })
  const level = (name: string, unit: string, description: string) =>
    meter.createObservableUpDownCounter(name, { unit, description })
  const counter = (name: string, unit: string, description: string) =>
    meter.createObservableCounter(name, { unit, description })

  const waiting = level('dit.queue.images', '{image}', 'Images that wait for a lane')
  const lanes = level('dit.lanes.used', '{lane}', 'Images in the making')
  const limit = level('dit.lanes.limit', '{lane}', 'Images that can be in the making at once')
  const memory = level('dit.memory.usage', 'By', 'Memory of the model on its device')
  const round = gauge('dit.round.duration', 's', 'Time of one step of all images in the making')
  const rounds = counter('dit.rounds', '{round}', 'Steps of all images in the making')
  const images = counter('dit.images', '{image}', 'Images made')
  const refused = counter('dit.calls.refused', '{call}', 'Calls refused or given up')
  const cancelled = counter('dit.calls.cancelled', '{call}', 'Calls that were cancelled')
  const counters = [rounds, images, refused, cancelled]
  const all: Observable[] = [waiting, lanes, limit, memory, round, ...counters]

  const levels = (
    result: BatchObservableResult,
    now: Pick<ModelStats, 'waiting' | 'lanes' | 'maxBatch'>,
    bytes: Omit<MemoryInfo, 'total'>,
  ) => {
    result.observe(waiting, now.waiting, attributes)
    result.observe(lanes, now.lanes, attributes)
    result.observe(limit, now.maxBatch, attributes)
    for (const part of ['weights', 'vae', 'activations', 'training'] as const) {
      result.observe(memory, bytes[part], { ...attributes, 'dit.memory.part': part })
    }
  }
  const callback = (result: BatchObservableResult) => {
    const open = ended ? undefined : model.deref()
    if (open === undefined) {
      levels(result, { waiting: 0, lanes: 0, maxBatch: 0 }, nothing)
      meter.removeBatchObservableCallback(callback, all)
      return
    }
    const stats = open.stats()
    levels(result, stats, open.memory())
    result.observe(round, stats.roundSeconds, attributes)
    result.observe(rounds, stats.rounds, attributes)
    result.observe(images, stats.images, attributes)
    result.observe(cancelled, stats.cancelled, attributes)
    const because = (code: DiTErrorCode) => ({ ...attributes, 'error.type': code })
    result.observe(refused, stats.refused.busy, because('ERR_DIT_BUSY'))
    result.observe(refused, stats.refused.deadline, because('ERR_DIT_DEADLINE'))
  }
  meter.addBatchObservableCallback(callback, all)
  return () => {
    ended = true
  }
}
