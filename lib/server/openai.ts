// POST images/generations, as clients of OpenAI's images API send it: the prompt is what a class is called.

import type { FastifyInstance, FastifyRequest } from 'fastify'
import { DiTError } from '../errors.js'
import { dataUrl } from './encode.js'
import { lookOf, seedsOf } from './images.js'
import type { Made, Order } from './making.js'
import { type OpenaiBody, openaiRule } from './request.js'
import { errorAnswers, openaiAnswers } from './schemas.js'
import { cancelOnDisconnect, type Service } from './service.js'

/** @internal */
export function addOpenai(app: FastifyInstance, service: Service): void {
  const { limits } = service.settings
  const rule = openaiRule(limits)
  app.post(
    '/v1/images/generations',
    {
      bodyLimit: limits.bodyBytes,
      ...service.rateLimited,
      schema: {
        operationId: 'generateImages',
        summary: "Make images of the class that a prompt names (OpenAI's images API)",
        tags: ['images'],
        body: rule.json,
        response: { ...openaiAnswers, ...errorAnswers.unauthorized, ...errorAnswers.making },
      },
    },
    async (request, reply) => {
      const body = rule.check(request.body)
      const order = orderOf(body, request, service)
      const job = service.open(order, request)
      cancelOnDisconnect(job, reply)
      const made = await service.run(order, job, () => ({}))
      return describe(made, body, order)
    },
  )
}

function orderOf(body: OpenaiBody, request: FastifyRequest, service: Service): Order {
  const served = service.models.get(body.model)
  const { width, height } = served
  const size = `${width}x${height}`
  if (body.size != null && body.size !== 'auto' && body.size !== size) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `Expected 'auto' or '${size}', the size of this model's images, for size but got '${body.size}'`,
    )
  }
  const label = served.classes.match(body.prompt as string)
  const n = body.n ?? 1
  return {
    served,
    labels: new Array<number>(n).fill(label),
    seeds: seedsOf(body, n),
    look: lookOf(body, served, service),
    how: { caller: service.callerOf(request, body.user) },
    preview: undefined,
    format: body.output_format ?? 'png',
  }
}

function describe({ images }: Made, body: OpenaiBody, { served, format }: Order) {
  return {
    created: Math.floor(Date.now() / 1000),
    size: `${served.width}x${served.height}`,
    output_format: format,
    data: images.map((image) => ({
      ...(body.response_format === 'url'
        ? { url: dataUrl(image) }
        : { b64_json: image.bytes.toString('base64') }),
      revised_prompt: image.className ?? 'no class',
      seed: typeof image.seed === 'bigint' ? String(image.seed) : image.seed,
    })),
  }
}
