export type { ErrorBody } from './errors.js'
export type { DitServerOptions, Limits, RateLimit } from './options.js'
export { ditServer } from './plugin.js'
export { type ServeOptions, type Server, serve } from './serve.js'
