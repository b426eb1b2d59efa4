// POST images: class numbers or names in, pictures out.

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { DiTError } from '../errors.js'
import type { Seed } from '../options.js'
import { seedsFrom } from '../sampling.js'
import { prefers } from './accept.js'
import { type ImageFormat, mimes } from './encode.js'
import type { Job } from './jobs.js'
import type { Made, MadeImage, Order } from './making.js'
import type { Served } from './models.js'
import { type ImageBody, imageRule } from './request.js'
import { errorAnswers, imagesAnswers } from './schemas.js'
import { cancelOnDisconnect, type Service } from './service.js'

/** @internal */
export function addImages(app: FastifyInstance, service: Service): void {
  const { limits } = service.settings
  const rule = imageRule(limits)
  app.post(
    '/v1/images',
    {
      bodyLimit: limits.bodyBytes,
      ...service.rateLimited,
      schema: {
        operationId: 'createImages',
        summary: 'Make images of classes',
        tags: ['images'],
        body: rule.json,
        response: { ...imagesAnswers, ...errorAnswers.unauthorized, ...errorAnswers.making },
      },
    },
    async (request, reply) => {
      const body = rule.check(request.body)
      const order = orderOf(body, request, service)
      const job = service.open(order, request)
      if (body.wait === false || asksForAsync(request)) return startJob(order, job, service, reply)
      cancelOnDisconnect(job, reply)
      const made = await service.run(order, job, (result) => describeMade(job, result))
      const [image] = made.images
      const asBytes = made.images.length === 1 && wantsBytes(body, request)
      return asBytes ? sendBytes(reply, image as MadeImage) : describeMade(job, made)
    },
  )
}

/** Answers at once; the images come as events. */
async function startJob(order: Order, job: Job, service: Service, reply: FastifyReply) {
  service.jobs.publish(job)
  await new Promise<void>((resolve, reject) => {
    // What goes wrong later is told to those who listen.
    service
      .run(order, job, (made) => describeMade(job, made), resolve)
      .then(() => resolve(), reject)
  })
  const events = `${service.prefix}/v1/images/${job.id}/events`
  return reply
    .code(202)
    .headers({ location: events, 'preference-applied': 'respond-async' })
    .send({ id: job.id, events })
}

function asksForAsync({ headers }: FastifyRequest): boolean {
  return [headers.prefer ?? ''].flat().some((value) => /(^|[\s,;])respond-async\b/i.test(value))
}

function wantsBytes({ format }: ImageBody, request: FastifyRequest): boolean {
  if (format !== undefined) return format !== 'json'
  return preferred(request) !== 'application/json'
}

function preferred({ headers }: FastifyRequest): string {
  return prefers(headers.accept, ['application/json', mimes.png, mimes.webp])
}

function formatOf({ format }: ImageBody, request: FastifyRequest): ImageFormat {
  if (format === 'png' || format === 'webp') return format
  return format === undefined && preferred(request) === mimes.webp ? 'webp' : 'png'
}

/** Throws what a wrong request is answered with. */
function orderOf(body: ImageBody, request: FastifyRequest, service: Service): Order {
  const served = service.models.get(body.model)
  const labels = [body.labels ?? []].flat().map((label) => served.classes.find(label))
  return {
    served,
    labels,
    seeds: seedsOf(body, labels.length),
    look: lookOf(body, served, service),
    how: {
      ...(body.priority !== undefined && { priority: body.priority }),
      ...(body.deadline !== undefined && { deadline: body.deadline }),
      caller: service.callerOf(request),
    },
    preview: body.preview,
    format: formatOf(body, request),
  }
}

/** What images look like, with all defaults, so that equal ones are found to be equal. @internal */
export function lookOf(
  { sampler = 'dpm++', steps, guidance, eta, guidanceInterval }: ImageBody,
  { dit }: Served,
  { settings }: Service,
): Order['look'] {
  const most = Math.min(settings.limits.steps, dit.schedule.steps)
  if (steps !== undefined && steps > most) {
    throw new DiTError('ERR_DIT_OPTION', `Expected 1 to ${most} for steps but got ${steps}`)
  }
  if (eta !== undefined && eta > 0 && sampler !== 'ddim') {
    throw new DiTError('ERR_DIT_OPTION', `Expected 0 for eta with '${sampler}' but got ${eta}`)
  }
  const { nullClass } = dit.config
  if (guidance !== undefined && guidance !== 1 && !nullClass) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `Expected 1 for guidance but got ${guidance}: this model has no null class`,
    )
  }
  return {
    sampler,
    steps: steps ?? Math.min(sampler === 'ddpm' ? 250 : 25, most),
    guidance: guidance ?? (nullClass ? 4 : 1),
    eta: eta ?? 0,
    guidanceInterval: guidanceInterval ?? [0, 1],
  }
}

/** @internal */
export function seedsOf(
  { seed, seeds }: Pick<ImageBody, 'seed' | 'seeds'>,
  n: number,
): Seed[] | undefined {
  if (seeds === undefined) return seed === undefined ? undefined : seedsFrom(BigInt(seed), n)
  if (seed !== undefined) {
    throw new DiTError('ERR_DIT_OPTION', 'Expected seed or seeds, but got both')
  }
  if (seeds.length !== n) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `Expected ${n} seeds, one per label, but got ${seeds.length}`,
    )
  }
  return seeds.map(BigInt)
}

/** The answer in JSON, which is also the event `done`. */
function describeMade(job: Job, { images, timings, cached }: Made): Record<string, unknown> {
  return {
    id: job.id,
    images: images.map(({ index, label, className, seed, width, height, format, bytes }) => ({
      index,
      label,
      ...(className !== undefined && { className }),
      seed: typeof seed === 'bigint' ? String(seed) : seed,
      width,
      height,
      mime: mimes[format],
      data: bytes.toString('base64'),
    })),
    timings: { ...timings, cached },
  }
}

function sendBytes(reply: FastifyReply, { format, bytes, label, seed, className }: MadeImage) {
  return reply
    .headers({
      'content-type': mimes[format],
      'cache-control': 'no-store',
      'x-content-type-options': 'nosniff',
      'x-dit-label': String(label),
      'x-dit-seed': String(seed),
      ...(className !== undefined && { 'x-dit-class': encodeURIComponent(className) }),
    })
    .send(bytes)
}
