// GET models: what there is to ask for.

import type { FastifyInstance } from 'fastify'
import { DiTError } from '../errors.js'
import { describeModel } from './models.js'
import { errorAnswers, modelsAnswers } from './schemas.js'
import type { Service } from './service.js'

const idParams = {
  type: 'object',
  properties: { id: { type: 'string', description: 'The name of a model.' } },
  required: ['id'],
}

const found = { ...errorAnswers.unauthorized, ...errorAnswers.missing }

/** @internal */
export function addListing(app: FastifyInstance, { models, settings }: Service): void {
  app.get(
    '/v1/models',
    {
      schema: {
        operationId: 'listModels',
        summary: 'All models, what they make and what may be asked for',
        tags: ['models'],
        response: { ...modelsAnswers.list, ...errorAnswers.unauthorized },
      },
    },
    async () => ({
      object: 'list',
      data: models.all().map((served) => describeModel(served, settings)),
    }),
  )

  app.get<{ Params: { id: string } }>(
    '/v1/models/:id',
    {
      schema: {
        operationId: 'getModel',
        summary: 'One model',
        tags: ['models'],
        params: idParams,
        response: { ...modelsAnswers.one, ...found },
      },
    },
    async ({ params }) => describeModel(models.get(params.id), settings),
  )

  app.get<{ Params: { id: string }; Querystring: { q?: string; limit?: string } }>(
    '/v1/models/:id/classes',
    {
      schema: {
        operationId: 'listClasses',
        summary: 'The classes of a model, all of them or those whose names fit a text',
        tags: ['models'],
        params: idParams,
        querystring: {
          type: 'object',
          properties: {
            q: { type: 'string', maxLength: 200, description: 'The best fit comes first.' },
            limit: { type: 'integer', minimum: 1, description: 'Default: all.' },
          },
        },
        response: { ...modelsAnswers.classes, ...errorAnswers.wrong, ...found },
      },
    },
    async ({ params, query }) => {
      const { classes } = models.get(params.id)
      const data = classes.search(textOf(query.q), limitOf(query.limit))
      return { object: 'list', data }
    },
  )
}

function textOf(q: unknown): string {
  if (q === undefined) return ''
  if (typeof q === 'string' && q.length <= 200) return q
  throw new DiTError('ERR_DIT_OPTION', 'Expected one text of at most 200 characters for q')
}

function limitOf(limit: unknown): number {
  if (limit === undefined) return Number.POSITIVE_INFINITY
  if (typeof limit === 'string' && /^[1-9]\d{0,8}$/.test(limit)) return Number(limit)
  throw new DiTError('ERR_DIT_OPTION', 'Expected an integer of at least 1 for limit')
}
