// What happens with a request that nobody waits for: server-sent events, and its end.

import type { ServerResponse } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { Abandoned, HttpError } from './errors.js'
import type { Job, JobEvent } from './jobs.js'
import { cancelAnswers, errorAnswers, eventsAnswers } from './schemas.js'
import { endSending, type Service } from './service.js'

/** Something is written so often, so that proxies do not think that the connection is dead. */
const heartbeatSeconds = 15
/** Each is sent every preview: one caller's many connections would cost everybody's time. */
const listenersPerJob = 16

const idParams = {
  type: 'object',
  properties: { id: { type: 'string', description: 'From the answer of POST images.' } },
  required: ['id'],
}

/** @internal */
export function addEvents(app: FastifyInstance, service: Service): void {
  const { jobs, tokens } = service
  app.get<{ Params: { id: string } }>(
    '/v1/images/:id/events',
    {
      exposeHeadRoute: false,
      schema: {
        operationId: 'watchImages',
        summary:
          'Watch images form, as server-sent events; when nobody listens any more, it is cancelled',
        tags: ['images'],
        params: idParams,
        response: {
          ...eventsAnswers,
          ...errorAnswers.unauthorized,
          ...errorAnswers.missing,
          ...errorAnswers.busy,
        },
      },
    },
    (request, reply) => {
      const job = jobs.get(request.params.id, tokens.ownerOf(request))
      if (job.listeners >= listenersPerJob) {
        const message = `Expected at most ${listenersPerJob} listeners of one request`
        throw new HttpError(429, 'ERR_DIT_BUSY', message, { retryAfter: 5 })
      }
      reply.hijack()
      reply.raw.writeHead(200, {
        ...(reply.getHeaders() as Record<string, string>),
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-store, no-transform',
        'x-accel-buffering': 'no',
        'x-content-type-options': 'nosniff',
      })
      sendEvents(job, reply.raw)
    },
  )

  app.delete<{ Params: { id: string } }>(
    '/v1/images/:id',
    {
      schema: {
        operationId: 'cancelImages',
        summary: 'Cancel a request for images',
        tags: ['images'],
        params: idParams,
        response: { ...cancelAnswers, ...errorAnswers.unauthorized, ...errorAnswers.missing },
      },
    },
    async (request, reply) => {
      jobs
        .get(request.params.id, tokens.ownerOf(request))
        .cancel(new Abandoned('The request was cancelled'))
      return reply.code(204).send()
    },
  )
}

/**
 * Writes a job's events until it ends or the connection does. A client that reads slowly misses progress
 * and previews, of which it is sent the latest when there is room again; one that reads nothing for two
 * heartbeats is disconnected.
 */
function sendEvents(job: Job, response: ServerResponse): void {
  const latest = new Map<string, JobEvent>()
  const send = (event: JobEvent) => {
    const last = event.event === 'done' || event.event === 'error'
    if (response.writableNeedDrain && !last) {
      latest.set(event.event === 'preview' ? `preview ${event.data.index}` : event.event, event)
      return
    }
    response.write(`event: ${event.event}\ndata: ${JSON.stringify(event.data)}\n\n`)
    if (last) end()
  }
  const end = () => {
    response.end()
    clearInterval(heartbeat)
    endSending(response)
  }
  let stuck = false
  const heartbeat = setInterval(() => {
    if (!response.writableNeedDrain) response.write(':\n\n')
    else if (stuck) response.destroy()
    stuck = response.writableNeedDrain
  }, heartbeatSeconds * 1000)
  response.on('drain', () => {
    stuck = false
    if (response.writableEnded) return
    const missed = [...latest.values()]
    latest.clear()
    for (const event of missed) send(event)
  })
  let stop = () => {}
  response.on('close', () => {
    clearInterval(heartbeat)
    stop()
    if (!job.ended && job.listeners === 0)
      job.cancel(new Abandoned('The request was cancelled: nobody listened any more'))
  })
  response.on('error', () => response.destroy())
  stop = job.listen(send)
}
