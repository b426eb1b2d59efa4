// The Fastify plugin: all routes, in a scope of their own.

import swagger from '@fastify/swagger'
import type { FastifyInstance } from 'fastify'
import { packageVersion } from '../version.js'
import { rateLimiter } from './access.js'
import { sendError } from './errors.js'
import { addEvents } from './events.js'
import { addHealth, addMetrics } from './health.js'
import { addImages } from './images.js'
import { addListing } from './listing.js'
import { addOpenai } from './openai.js'
import { checkPluginOptions, type DitServerOptions } from './options.js'
import { addPlayground } from './playground.js'
import { errorAnswers, healthAnswers } from './schemas.js'
import { endSending, Service } from './service.js'

/**
 * A Fastify plugin that serves models: `POST /v1/images`, `GET /v1/images/:id/events`, `POST
 * /v1/images/generations` (OpenAI's images API), `GET /v1/models`, `/healthz`, `/readyz`, `/metrics`,
 * `/openapi.json`, and a page at `/` to try it. Routes, hooks and error handling stay within the plugin; give it a
 * `prefix` to have all of it elsewhere. Images of all requests share the model's rounds, and a
 * client that goes away frees its lanes within a step.
 *
 * Needs the packages fastify, @fastify/swagger, prom-client and lru-cache.
 *
 * Rejects (`await app.ready()`) with ERR_DIT_OPTION for a wrong option.
 *
 * @param app Where it is registered.
 * @param options The models, who may ask, and for how much.
 *
 * @example
 * import Fastify from 'fastify'
 * import { DiT } from 'dit-native'
 * import { ditServer } from 'dit-native/server'
 *
 * const app = Fastify()
 * await app.register(ditServer, { prefix: '/images', model: await DiT.load('demo'), limits: { images: 4 } })
 * await app.listen({ port: 3000 })
 */
export async function ditServer(app: FastifyInstance, options: DitServerOptions): Promise<void> {
  const { settings, models } = checkPluginOptions(options)
  const service = new Service(settings)
  for (const [id, dit] of Object.entries(models)) service.addModel(id, dit)
  await mount(app, service)
}

// Fastify's own way to refuse an application of another version.
Object.assign(ditServer, { [Symbol.for('plugin-meta')]: { name: 'dit-native', fastify: '5.x' } })

/** All routes of a service. @internal */
export async function mount(app: FastifyInstance, service: Service): Promise<void> {
  const { settings, tokens } = service
  service.prefix = app.prefix
  // The schemas are for the document: bodies are checked by the library's own rules, whose messages say
  // more, and answers are written as they are.
  app.setValidatorCompiler(() => () => true)
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))
  app.setReplySerializer((data) => JSON.stringify(data)) // not the application's around
  app.setErrorHandler(sendError)
  service.metrics.watch(app)
  app.addHook('onSend', async (_, { raw }) => endSending(raw))
  app.addHook('preClose', () => service.drain())
  app.addHook('onClose', async () => service.metrics.close())

  await app.register(swagger, {
    decorator: 'ditOpenapi',
    stripBasePath: false,
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'dit-native',
        description: 'Pictures by Diffusion Transformers.',
        version: packageVersion(),
      },
      tags: [
        { name: 'images', description: 'Make images' },
        { name: 'models', description: 'What there is to make' },
        { name: 'operation', description: 'For those who run it' },
      ],
      ...(tokens.asked && {
        components: { securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
      }),
    },
  })
  if (settings.rateLimit) {
    const limiter = await rateLimiter(app, settings.rateLimit, (request) => tokens.ownerOf(request))
    service.rateLimited = { onRequest: limiter }
  }

  await app.register(async (open) => addHealth(open, service))
  if (settings.playground) await app.register(async (open) => addPlayground(open))
  await app.register(async (guarded) => {
    // JSON and nothing else, whatever the application around reads bodies as.
    guarded.removeAllContentTypeParsers()
    const readJson = guarded.getDefaultJsonParser('error', 'error')
    guarded.addContentTypeParser('application/json', { parseAs: 'string' }, readJson)
    if (tokens.asked) {
      guarded.addHook('onRequest', async (request) => {
        tokens.ownerOf(request)
      })
      guarded.addHook('onRoute', (route) => {
        route.schema = { ...route.schema, security: [{ token: [] }] }
      })
    }
    addImages(guarded, service)
    addEvents(guarded, service)
    addOpenai(guarded, service)
    addListing(guarded, service)
    addMetrics(guarded, service)
    addOpenapi(guarded, app)
  })
}

function addOpenapi(guarded: FastifyInstance, app: FastifyInstance): void {
  guarded.get(
    '/openapi.json',
    {
      logLevel: 'warn',
      schema: {
        operationId: 'openapi',
        summary: 'This document',
        tags: ['operation'],
        response: { ...healthAnswers.openapi, ...errorAnswers.unauthorized },
      },
    },
    async () => (app as FastifyInstance & { ditOpenapi(): unknown }).ditOpenapi(),
  )
}
