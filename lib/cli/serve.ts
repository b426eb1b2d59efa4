// `dit serve`: models over HTTP.

import type { Command } from 'commander'
import { Option } from 'commander'
import { DiTError } from '../errors.js'
import type { ServeOptions, Server } from '../server/serve.js'
import {
  addDeviceOptions,
  addSourceOptions,
  type CommonFlags,
  type Context,
  type DeviceFlags,
  newCommand,
  pick,
  type SourceFlags,
} from './command.js'
import { Progress } from './progress.js'
import * as values from './values.js'

interface ServeFlags extends CommonFlags, SourceFlags, DeviceFlags {
  model: Record<string, string> | string
  host: string
  port: number
  token?: string
  public?: true
  maxBatch?: number
  maxQueue?: number
  maxImages?: number
  maxSteps?: number
  maxInFlight?: number
  rateLimit?: number
  cacheMb?: number
  grace: number
  trustProxy?: true
  log?: true
  playground: boolean
}

export function serveCommand(context: Context): Command {
  const command = newCommand('serve', 'serve models over HTTP, with a page to try them')
    .requiredOption(
      '--model <source>',
      'a folder, a file, a Hugging Face id, or demo; several times as NAME=SOURCE',
      values.namedModels,
    )
    .option('--host <address>', 'where to listen', '127.0.0.1')
    .option('--port <n>', 'where to listen; 0: a free one', values.integer(0, 65_535), 3000)
    .addOption(
      new Option(
        '--token <text>',
        'what Authorization: Bearer must say; DIT_TOKEN shows in no process list',
      ).env('DIT_TOKEN'),
    )
    .option('--public', 'listen where others reach it without a token')
    .option('--max-batch <n>', 'images in the making at once', values.integer(1))
    .option('--max-queue <n>', 'images that may wait', values.integer(0))
    .option('--max-images <n>', 'images of one request; default: 16', values.integer(1))
    .option('--max-steps <n>', 'steps of one image; default: 250', values.integer(1))
    .option('--max-in-flight <n>', 'images of all requests; default: 256', values.integer(1))
    .option(
      '--rate-limit <n>',
      'requests for images in a minute from one caller',
      values.integer(1),
    )
    .option(
      '--cache-mb <n>',
      'memory for images that are asked for again; default: 64',
      values.integer(0),
    )
    .option(
      '--grace <seconds>',
      'what is under way has to end after SIGTERM',
      values.integer(0),
      10,
    )
    .option('--trust-proxy', 'believe X-Forwarded-For: behind a proxy')
    .option('--log', 'a line of JSON for each request, on stdout')
    .option('--no-playground', 'no page at /')
  addSourceOptions(command)
  addDeviceOptions(command)
  return command.action((flags: ServeFlags) => run(flags, context))
}

async function run(flags: ServeFlags, context: Context): Promise<void> {
  const progress = new Progress({ quiet: flags.quiet === true })
  const stopped = new AbortController()
  const stop = () => stopped.abort()
  process.once('SIGTERM', stop)
  context.signal.addEventListener('abort', stop, { once: true })
  try {
    const { serve } = await loadServer()
    const server = await serve({ ...serveOptions(flags, progress), signal: stopped.signal })
    progress.end()
    announce(server, flags, context)
    if (!stopped.signal.aborted) {
      await new Promise((resolve) => stopped.signal.addEventListener('abort', resolve))
    }
    if (!flags.quiet) process.stderr.write('dit: stopping\n')
    await server.close()
  } catch (error) {
    // Stopped before it was ready: nothing failed.
    if (error !== stopped.signal.reason || !stopped.signal.aborted) throw error
  } finally {
    progress.end()
  }
}

/** The server needs packages that nothing else does. */
async function loadServer(): Promise<typeof import('../server/serve.js')> {
  try {
    return await import('../server/serve.js')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code !== 'MODULE_NOT_FOUND' && code !== 'ERR_MODULE_NOT_FOUND') throw cause
    throw new DiTError(
      'ERR_DIT_FILE',
      'The server needs packages that are not installed here: npm install fastify @fastify/swagger prom-client lru-cache',
      { cause },
    )
  }
}

function serveOptions(flags: ServeFlags, progress: Progress): ServeOptions {
  return {
    model: flags.model,
    host: flags.host,
    port: flags.port,
    load: {
      ...pick(flags, 'weights', 'config', 'vae', 'revision'),
      ...pick(flags, 'device', 'precision', 'threads', 'latentSize', 'maxBatch', 'maxQueue'),
      onProgress: progress.load,
    },
    limits: {
      ...(flags.maxImages !== undefined && { images: flags.maxImages }),
      ...(flags.maxSteps !== undefined && { steps: flags.maxSteps }),
      ...(flags.maxInFlight !== undefined && { inFlight: flags.maxInFlight }),
    },
    ...(flags.token !== undefined && { token: flags.token }),
    ...(flags.public && { allowPublic: true }),
    ...(flags.rateLimit !== undefined && { rateLimit: { requests: flags.rateLimit } }),
    ...(flags.cacheMb !== undefined && { cacheBytes: flags.cacheMb * 2 ** 20 }),
    ...(flags.trustProxy && { trustProxy: true }),
    logger: flags.log ? true : { level: 'error', stream: process.stderr },
    graceSeconds: flags.grace,
    playground: flags.playground,
  }
}

function announce({ url }: Server, flags: ServeFlags, { print }: Context): void {
  print(flags.json ? JSON.stringify({ url }) : `listening on ${url}`)
  if (flags.playground && !flags.quiet && !flags.json)
    process.stderr.write(`Open ${url}/ to try it.\n`)
}
