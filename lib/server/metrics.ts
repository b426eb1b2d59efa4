// What Prometheus is told.

import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks'
import type { FastifyInstance } from 'fastify'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { ImageCache } from './cache.js'
import type { Jobs } from './jobs.js'
import type { Models, Served } from './models.js'

/** Seconds: from a page of the playground to a slow model on a processor. */
const buckets = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180]

/** The figures of a server, in a registry of its own. @internal */
export class Metrics {
  readonly registry = new Registry()
  readonly images: Counter<'model' | 'from'>
  readonly requests: Histogram<'method' | 'route' | 'status'>
  readonly #delay: IntervalHistogram

  constructor(models: Models, jobs: Jobs, cache: ImageCache) {
    const registers = [this.registry]
    this.images = new Counter({
      name: 'dit_server_images_total',
      help: 'Images that were answered with: made, or remembered (cache).',
      labelNames: ['model', 'from'],
      registers,
    })
    this.requests = new Histogram({
      name: 'dit_http_request_duration_seconds',
      help: 'From the request to the end of its answer. Status 499: nobody listened any more.',
      labelNames: ['method', 'route', 'status'],
      buckets,
      registers,
    })
    this.#addModels(models)
    this.#add('dit_server_images_in_flight', 'Images of requests under way.', () => jobs.images)
    this.#add('dit_server_draining', '1 while the server is being stopped.', () =>
      Number(jobs.draining),
    )
    this.#add('dit_cache_bytes', 'Bytes of images that are remembered.', () => cache.bytes)
    this.#count('dit_cache_hits_total', 'Images that were remembered.', () => cache.hits)
    this.#count('dit_cache_misses_total', 'Images with a seed that were not.', () => cache.misses)
    this.#add('process_resident_memory_bytes', 'Memory of this process.', () => {
      return process.memoryUsage.rss()
    })
    this.#delay = monitorEventLoopDelay({ resolution: 10 })
    this.#delay.enable()
    this.#addDelay()
  }

  /** Measures every request of an app. */
  watch(app: FastifyInstance): void {
    app.addHook('onRequest', async (request, { raw }) => {
      const stop = this.requests.startTimer({
        method: request.method,
        route: request.routeOptions.url ?? 'unknown',
      })
      const onFinish = () => {
        raw.off('close', onClose)
        stop({ status: raw.statusCode })
      }
      const onClose = () => stop({ status: 499 })
      raw.once('finish', onFinish).once('close', onClose)
    })
  }

  close(): void {
    this.#delay.disable()
    this.registry.clear()
  }

  #add(name: string, help: string, value: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.registry],
      collect() {
        this.set(value())
      },
    })
  }

  /** A counter of something that counts itself. */
  #count(name: string, help: string, value: () => number): void {
    new Counter({
      name,
      help,
      registers: [this.registry],
      collect() {
        this.reset()
        this.inc(value())
      },
    })
  }

  #addModels(models: Models): void {
    const of = (
      kind: typeof Gauge<'model' | 'kind'> | typeof Counter<'model' | 'kind'>,
      name: string,
      help: string,
      values: (served: Served) => Record<string, number>,
    ) => {
      new kind({
        name,
        help,
        labelNames: ['model', 'kind'],
        registers: [this.registry],
        collect() {
          this.reset()
          if (models.problem() !== undefined) return
          for (const served of models.all()) {
            for (const [key, value] of Object.entries(values(served))) {
              this.inc({ model: served.id, ...(key && { kind: key }) }, value)
            }
          }
        },
      })
    }
    of(Gauge, 'dit_device_memory_bytes', 'Memory of a model on its device.', ({ dit }) => {
      const { total: _, ...parts } = dit.memory()
      return { ...parts }
    })
    of(Gauge, 'dit_max_batch', 'Images in the making at once, at most.', ({ dit }) => {
      return { '': dit.stats().maxBatch }
    })
    of(Gauge, 'dit_lanes', 'Images in the making.', ({ dit }) => ({ '': dit.stats().lanes }))
    of(Gauge, 'dit_waiting_images', 'Images that wait for a lane.', ({ dit }) => {
      return { '': dit.stats().waiting }
    })
    of(
      Gauge,
      'dit_round_seconds',
      'One step of all images in the making: recent average.',
      (one) => {
        return { '': one.dit.stats().roundSeconds }
      },
    )
    of(Counter, 'dit_images_total', 'Images that were made.', ({ dit }) => {
      return { '': dit.stats().images }
    })
    of(Counter, 'dit_rounds_total', 'Steps of all images in the making.', ({ dit }) => {
      return { '': dit.stats().rounds }
    })
    of(Counter, 'dit_refused_total', 'Calls refused: queue full, deadline.', ({ dit }) => {
      return { ...dit.stats().refused }
    })
    of(Counter, 'dit_cancelled_total', 'Calls that were cancelled.', ({ dit }) => {
      return { '': dit.stats().cancelled }
    })
  }

  #addDelay(): void {
    const delay = this.#delay
    new Gauge({
      name: 'dit_eventloop_delay_seconds',
      help: 'How late the event loop was since the last time this was asked for.',
      labelNames: ['quantile'],
      registers: [this.registry],
      collect() {
        const seconds = (nanoseconds: number) => nanoseconds / 1e9
        this.set({ quantile: '0.5' }, seconds(delay.percentile(50)))
        this.set({ quantile: '0.99' }, seconds(delay.percentile(99)))
        this.set({ quantile: '1' }, seconds(delay.max))
        delay.reset()
      },
    })
  }
}
