// Everything that the routes share.

import type { ServerResponse } from 'node:http'
import type { FastifyReply, FastifyRequest, onRequestHookHandler } from 'fastify'
import type { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { Tokens } from './access.js'
import { ImageCache } from './cache.js'
import { Abandoned, answerOf, HttpError } from './errors.js'
import { drained, type Job, Jobs } from './jobs.js'
import { type Made, make, type Order } from './making.js'
import { Metrics } from './metrics.js'
import { Models } from './models.js'
import type { Settings } from './options.js'

/** The models, the requests under way, and what is remembered and counted of them. @internal */
export class Service {
  readonly models = new Models()
  readonly tokens: Tokens
  readonly jobs: Jobs
  readonly cache: ImageCache
  readonly metrics: Metrics

  /** Whether models are still to come. */
  loading = false
  /** Where the routes are. */
  prefix = ''
  /** What routes that make images are registered with. */
  rateLimited: { onRequest?: onRequestHookHandler } = {}

  constructor(readonly settings: Settings) {
    this.tokens = new Tokens(settings.tokens)
    this.jobs = new Jobs(settings.limits)
    this.cache = new ImageCache(settings.cacheBytes)
    this.metrics = new Metrics(this.models, this.jobs, this.cache)
  }

  addModel(id: string, dit: DiT): void {
    this.models.add(id, dit)
    // Read in the background, so that the first request does not wait for it.
    if (this.cache.enabled) void this.models.get(id).identity()
  }

  /** Who asks, for fair shares. */
  callerOf(request: FastifyRequest, user?: string): string {
    const { caller } = this.settings
    if (caller) return caller(request)
    const owner = this.tokens.ownerOf(request) || request.ip
    return user === undefined ? owner : `${owner} ${user}`
  }

  /** Why new requests cannot be answered; undefined when they can. */
  problem(): string | undefined {
    if (this.jobs.draining) return 'the server is being stopped'
    if (this.loading) return 'a model is being loaded'
    return this.models.problem()
  }

  /** Lets a request in. Throws 429 when there are too many images under way, 503 while draining. */
  open({ served, labels }: Order, request: FastifyRequest): Job {
    const { inFlight } = this.settings.limits
    if (this.jobs.draining) throw drained()
    if (this.jobs.images + labels.length <= inFlight) {
      return this.jobs.open(labels.length, this.tokens.ownerOf(request))
    }
    const message = `${this.jobs.images} images are under way, and ${inFlight} may be`
    const { imagesPerSecond = 1 } = served.dit.stats()
    throw new HttpError(429, 'ERR_DIT_BUSY', message, {
      retryAfter: labels.length / imagesPerSecond,
    })
  }

  /** Makes a job's images. `describe` says what its listeners are told in the end. */
  async run(
    order: Order,
    job: Job,
    describe: (made: Made) => Record<string, unknown>,
    onAdmitted?: () => void,
  ): Promise<Made> {
    let bytes = 0
    try {
      const made = await make(order, job, this.cache, onAdmitted)
      const { id } = order.served
      this.metrics.images.inc({ model: id, from: 'cache' }, made.cached)
      this.metrics.images.inc({ model: id, from: 'model' }, made.images.length - made.cached)
      // In base64, which is what listeners are sent.
      bytes = made.images.reduce((sum, image) => sum + Math.ceil(image.bytes.length / 3) * 4, 0)
      if (job.published) job.emit({ event: 'done', data: describe(made) })
      return made
    } catch (error) {
      if (error instanceof DiTError && error.code === 'ERR_DIT_DEVICE_LOST') {
        this.models.lose(order.served.id)
      }
      job.emit({ event: 'error', data: { ...answerOf(error).body.error } })
      throw error
    } finally {
      this.jobs.close(job, bytes)
    }
  }

  /** Takes nothing new, and waits for what is under way. */
  drain(): Promise<void> {
    return this.jobs.drain(this.settings.graceSeconds)
  }
}

/** A client that has not read its answer by then is disconnected. */
const sendSeconds = 120

/** Sees to it that an answer, which is all there, ends some time. @internal */
export function endSending(response: ServerResponse): void {
  if (response.destroyed) return // left already
  const timer = setTimeout(() => response.destroy(), sendSeconds * 1000).unref()
  response.once('close', () => clearTimeout(timer))
}

/** Cancels a job when whoever asked for it goes away before the answer. @internal */
export function cancelOnDisconnect(job: Job, reply: FastifyReply): void {
  const { raw } = reply
  const onClose = () => {
    if (!raw.writableFinished)
      job.cancel(new Abandoned('The request was cancelled: nobody waited any more'))
  }
  // Gone already, while the body was read.
  if (raw.destroyed || raw.closed) onClose()
  else raw.once('close', onClose)
}
