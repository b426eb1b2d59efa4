// A server of its own: what `dit serve` runs.

import fastify, { type FastifyServerOptions } from 'fastify'
import * as v from 'valibot'
import { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { check, flag, integer, type LoadOptions, signal, text } from '../options.js'
import { isLoopback, onlyLoopbackNames } from './access.js'
import { HttpError, sendError } from './errors.js'
import { checkModelName, type DitServerOptions, settingsEntries, toSettings } from './options.js'
import { mount } from './plugin.js'
import { Service } from './service.js'

/**
 * Options of `serve`.
 *
 * @example
 * const options: ServeOptions = { model: { xl: 'facebook/DiT-XL-2-256' }, port: 8080, load: { device: 'cuda' } }
 */
export interface ServeOptions extends Omit<DitServerOptions, 'model'> {
  /** What `DiT.load` takes, or several by their names in requests. One alone is named after its last part. */
  model: string | Readonly<Record<string, string>>
  /** How they are loaded. */
  load?: LoadOptions
  /** Default 3000; 0: one that is free. */
  port?: number
  /** Default `'127.0.0.1'`: this machine only. An address that others reach needs a `token`. */
  host?: string
  /**
   * Lets everybody who reaches the server make images: an address that others reach needs no token, and
   * requests need not say that they are for localhost, as behind a proxy. Default false.
   */
  allowPublic?: boolean
  /** As Fastify's: whose `X-Forwarded-*` headers are believed, behind a proxy. Default: nobody's. */
  trustProxy?: FastifyServerOptions['trustProxy']
  /** As Fastify's. Default: none. */
  logger?: FastifyServerOptions['logger']
  /** Stops the server when it aborts, as `close` does. */
  signal?: AbortSignal
}

/** A server that runs. */
export interface Server {
  /** `http://127.0.0.1:3000`. */
  readonly url: string
  /** Takes no more work, lets what is under way end (`graceSeconds`), cancels the rest, frees the models. */
  close(): Promise<void>
}

/** Whole requests, headers included, must be there in so many seconds: nobody holds a connection by being slow. */
const headerSeconds = 5
const requestSeconds = 15
const keepAliveSeconds = 60
/** Between the end of the last request and that of the last connection. */
const closeSeconds = 3

const serveSchema = v.strictObject({
  ...settingsEntries,
  model: v.custom<ServeOptions['model']>(() => true),
  load: v.optional(v.custom<LoadOptions>(() => true)),
  port: v.optional(integer(0, 65_535), 3000),
  host: v.optional(text, '127.0.0.1'),
  allowPublic: v.optional(flag, false),
  trustProxy: v.optional(
    v.custom<NonNullable<FastifyServerOptions['trustProxy']>>(() => true),
    false,
  ),
  logger: v.optional(
    v.custom<NonNullable<FastifyServerOptions['logger']>>(() => true),
    false,
  ),
  signal: v.optional(signal),
})

/**
 * Loads models and serves them over HTTP; see `ditServer` for what. It listens before they are loaded,
 * so that `/healthz` and `/readyz` can be asked, and resolves when it is ready.
 *
 * Rejects with ERR_DIT_OPTION for a wrong option, and for an address that others reach without a token; with
 * what `DiT.load` rejects with; with `signal.reason` after an abort.
 *
 * @param serveOptions The models, where to listen, who may ask, and for how much.
 *
 * @example
 * const server = await serve({ model: 'demo', port: 8080 })
 * console.log(server.url)
 * process.once('SIGTERM', () => server.close())
 */
export async function serve(serveOptions: ServeOptions): Promise<Server> {
  const { model, load = {}, host, port, allowPublic, ...given } = check(serveSchema, serveOptions)
  const settings = toSettings(given)
  const sources = sourcesOf(model)
  const isPublic = !isLoopback(host)
  if (isPublic && settings.tokens.length === 0 && !allowPublic) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `Others can reach the address ${host}: give a token, or allowPublic if everybody may make images`,
    )
  }
  given.signal?.throwIfAborted()
  const service = new Service(settings)
  service.loading = true
  const app = fastify({
    logger: given.logger,
    trustProxy: given.trustProxy,
    requestTimeout: requestSeconds * 1000,
    keepAliveTimeout: keepAliveSeconds * 1000,
    http: { headersTimeout: headerSeconds * 1000, connectionsCheckingInterval: 1000 },
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    routerOptions: { ignoreTrailingSlash: false },
  })
  app.setErrorHandler(sendError)
  app.setNotFoundHandler(() => {
    throw new HttpError(404, 'not_found', 'There is nothing here: see /openapi.json')
  })
  if (!isPublic && settings.tokens.length === 0 && !allowPublic) onlyLoopbackNames(app)
  await app.register((scope) => mount(scope, service))

  const models: DiT[] = []
  let closing: Promise<void> | undefined
  const stop = new AbortController()
  const close = () => {
    closing ??= (async () => {
      stop.abort(given.signal?.reason)
      await service.drain()
      // Those that neither ask nor read hold nothing up.
      const timer = setTimeout(() => app.server.closeAllConnections(), closeSeconds * 1000)
      await app.close()
      clearTimeout(timer)
      await Promise.all(models.map((dit) => dit.close()))
    })()
    return closing
  }
  given.signal?.addEventListener('abort', () => void close(), { once: true })
  try {
    given.signal?.throwIfAborted() // while routes were made
    const url = await app.listen({ host, port }).catch((cause: NodeJS.ErrnoException) => {
      throw listenError(host, port, cause)
    })
    for (const [id, source] of Object.entries(sources)) {
      const dit = await DiT.load(source, { ...load, signal: stop.signal })
      models.push(dit)
      service.addModel(id, dit)
    }
    service.loading = false
    return { url, close }
  } catch (error) {
    await close()
    throw error
  }
}

const listenProblems: Record<string, string> = {
  EADDRINUSE: 'is taken',
  EACCES: 'may not be listened on by this user',
  EADDRNOTAVAIL: 'is on no network of this machine',
}

function listenError(host: string, port: number, cause: NodeJS.ErrnoException): DiTError {
  const problem = listenProblems[cause.code ?? ''] ?? `cannot be listened on: ${cause.message}`
  return new DiTError('ERR_DIT_OPTION', `The port ${port} of ${host} ${problem}`, { cause })
}

function sourcesOf(model: unknown): Record<string, string> {
  if (typeof model === 'string' && model !== '') return { [nameOf(model)]: model }
  const entries = typeof model === 'object' && model !== null ? Object.entries(model) : []
  const fits = entries.every(([name, source]) => checkModelName(name) && typeof source === 'string')
  if (entries.length > 0 && fits) return Object.fromEntries(entries)
  throw new DiTError(
    'ERR_DIT_OPTION',
    "Expected what DiT.load takes ('demo', a folder, a file, a Hugging Face id), or an object from names to those, for model",
  )
}

/** The last part of a path or id, without what a name cannot have. @internal */
export function nameOf(source: string): string {
  const last = source.split(/[\\/]/).findLast((part) => part !== '') ?? source
  const name = last.replace(/\.(safetensors|pt|pth|bin)$/, '').replace(/[^\w.-]+/g, '-')
  return checkModelName(name.slice(0, 100))
}
