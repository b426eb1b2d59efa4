// What went wrong, as an answer: the status, and OpenAI's shape of an error.

import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { DiTError, type DiTErrorCode } from '../errors.js'

/**
 * The body of every answer that is an error, in the shape of OpenAI's. Codes are those of DiTError, those of
 * Fastify (`FST_…`: no JSON, a body too large), and
 *
 * | code | status | meaning |
 * |---|---|---|
 * | `invalid_token` | 401 | the token is missing or wrong |
 * | `model_not_found`, `not_found` | 404 | there is no such model, request or path |
 * | `rate_limit_exceeded` | 429 | the caller asks too often (`rateLimit`) |
 * | `cancelled` | 499, or an event | nobody waited any more, or it was deleted |
 * | `ERR_DIT_LOADING`, `ERR_DIT_DRAINING` | 503 | the server is being started or stopped |
 * | `wrong_host` | 421 | a server for this machine was called by another name |
 */
export interface ErrorBody {
  /** What went wrong: `code` is a DiTError's or the server's own; `suggestions` are of a class name. */
  error: {
    message: string
    type: 'invalid_request_error' | 'authentication_error' | 'rate_limit_error' | 'server_error'
    code: string
    suggestions?: readonly { id: number; name: string }[]
  }
}

/** A refusal of this server. @internal */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly more: {
      retryAfter?: number | undefined
      suggestions?: readonly { id: number; name: string }[]
    } = {},
  ) {
    super(message)
  }
}

/** What a request ends with that nobody waits for any more. @internal */
export class Abandoned extends Error {
  override readonly name = 'AbortError'
}

/** @internal */
export interface Answer {
  status: number
  body: ErrorBody
  /** Seconds. */
  retryAfter?: number | undefined
}

/** Nobody is there to read it; logs and metrics show it. */
const statusAbandoned = 499

const statuses: Partial<Record<DiTErrorCode, number>> = {
  ERR_DIT_OPTION: 400,
  ERR_DIT_SHAPE: 400,
  ERR_DIT_BUSY: 429,
  ERR_DIT_OOM: 503,
  ERR_DIT_CLOSED: 503,
  ERR_DIT_DEVICE_LOST: 503,
}

/** What is said instead of the message of an error that is not the caller's. */
const publicMessages: Partial<Record<DiTErrorCode, string>> = {
  ERR_DIT_OOM: 'There is not enough memory for this now. Ask for fewer images, or later',
  ERR_DIT_CLOSED: 'The model is being closed',
  ERR_DIT_DEVICE_LOST: 'The device failed; the server has to be started anew',
  ERR_DIT_NONFINITE: 'An image came out as no number. Less guidance may help',
}

/** @internal */
export function answerOf(error: unknown): Answer {
  if (error instanceof HttpError) {
    const { status, code, message, more } = error
    return answer(status, code, message, more)
  }
  if (error instanceof Abandoned) return answer(statusAbandoned, 'cancelled', error.message)
  if (error instanceof DiTError) return answerOfDiT(error)
  const { statusCode, code = 'ERR_HTTP', message } = error as Partial<FastifyError>
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return answer(statusCode, code, message ?? 'The request is wrong')
  }
  return answer(500, 'ERR_DIT_INTERNAL', 'Something went wrong here')
}

function answerOfDiT({ code, message, retryAfter }: DiTError): Answer {
  // Refused at once, or given up on the way.
  if (code === 'ERR_DIT_DEADLINE') {
    return answer(retryAfter === undefined ? 504 : 503, code, message, { retryAfter })
  }
  const status = statuses[code] ?? 500
  if (status === 400) return answer(status, code, message)
  if (code === 'ERR_DIT_BUSY') return answer(status, code, message, { retryAfter: retryAfter ?? 1 })
  const text = publicMessages[code] ?? 'Something went wrong here'
  return answer(status, code, text, status === 503 ? { retryAfter: 5 } : {})
}

function answer(
  status: number,
  code: string,
  message: string,
  { retryAfter, suggestions }: HttpError['more'] = {},
): Answer {
  const type =
    status === 401
      ? 'authentication_error'
      : status === 429
        ? 'rate_limit_error'
        : status < 500
          ? 'invalid_request_error'
          : 'server_error'
  return {
    status,
    body: { error: { message, type, code, ...(suggestions && { suggestions }) } },
    retryAfter,
  }
}

/** The plugin's error handler. @internal */
export function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const { status, body, retryAfter } = answerOf(error)
  // What the caller is not told is for whoever runs the server.
  if (status >= 500) request.log.error({ err: error }, 'a request failed')
  if (retryAfter !== undefined) reply.header('retry-after', Math.max(1, Math.ceil(retryAfter)))
  if (status === 401) reply.header('www-authenticate', 'Bearer realm="dit-native"')
  reply.code(status).type('application/json').send(body)
}
