// For those who run the server: whether it is alive and ready, what it does, and what it answers to.

import type { FastifyInstance } from 'fastify'
import { errorAnswers, healthAnswers } from './schemas.js'
import type { Service } from './service.js'

/** Asked by machines that have no token. @internal */
export function addHealth(app: FastifyInstance, service: Service): void {
  app.get(
    '/healthz',
    {
      logLevel: 'warn',
      schema: {
        operationId: 'alive',
        summary: 'Whether the process is alive',
        tags: ['operation'],
        response: healthAnswers.alive,
      },
    },
    async () => ({ status: 'alive' }),
  )

  app.get(
    '/readyz',
    {
      logLevel: 'warn',
      schema: {
        operationId: 'ready',
        summary: 'Whether a model is loaded, works, and is not being stopped',
        tags: ['operation'],
        response: healthAnswers.ready,
      },
    },
    async (_, reply) => {
      const reason = service.problem()
      reply.header('cache-control', 'no-store')
      if (reason === undefined) return { status: 'ready' }
      return reply.code(503).header('retry-after', 5).send({ status: 'not ready', reason })
    },
  )
}

/** @internal */
export function addMetrics(app: FastifyInstance, { metrics }: Service): void {
  app.get(
    '/metrics',
    {
      logLevel: 'warn',
      schema: {
        operationId: 'metrics',
        summary: 'Figures for Prometheus',
        tags: ['operation'],
        response: { ...healthAnswers.metrics, ...errorAnswers.unauthorized },
      },
    },
    async (_, reply) => {
      const text = await metrics.registry.metrics()
      return reply.header('content-type', metrics.registry.contentType).send(text)
    },
  )
}
