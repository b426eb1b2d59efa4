// A route of one's own in an application made with Fastify: node examples/fastify.mjs, then
//
//   curl -o shoe.png 'http://127.0.0.1:3000/images/Sneaker?seed=1'
//
// One model serves all requests: those that come at the same time share its steps. For a whole HTTP
// interface with a playground there is the plugin dit-native/server (server.mjs).
import { DiT, DiTError } from 'dit-native'
import Fastify from 'fastify'

const { PORT = '3000', MODEL = 'demo' } = process.env
const dit = await DiT.load(MODEL, { maxQueue: 32 }) // more wait no longer than anybody would

const app = Fastify()
app.addHook('onClose', () => dit.close())

const querystring = {
  type: 'object',
  properties: {
    seed: { type: 'integer', minimum: 0 },
    steps: { type: 'integer', minimum: 1, maximum: 1000, default: 25 },
  },
}

app.get('/images/:label', { schema: { querystring } }, async (request, reply) => {
  const left = new AbortController()
  reply.raw.on('close', () => left.abort()) // the client is gone, or has everything
  const { label } = request.params
  const [image] = await dit.sample(/^\d+$/.test(label) ? Number(label) : label, {
    ...request.query,
    guidance: 2,
    caller: request.ip, // who asks for much does not make others wait
    signal: left.signal,
  })
  reply.header('X-Seed', String(image.seed)).type('image/png')
  return image.toPNG()
})

app.get('/stats', () => dit.stats())

app.setErrorHandler((error, request, reply) => {
  if (request.raw.destroyed) return reply.hijack() // nobody is there to be told
  if (!(error instanceof DiTError)) return reply.send(error)
  const status = { ERR_DIT_OPTION: 400, ERR_DIT_SHAPE: 400, ERR_DIT_BUSY: 503 }[error.code] ?? 500
  if (status === 503) reply.header('Retry-After', String(Math.ceil(error.retryAfter ?? 1)))
  if (status === 500) console.error(`${request.method} ${request.url}:`, error)
  return reply.code(status).send({ error: { code: error.code, message: error.message } })
})

console.log(await app.listen({ port: Number(PORT), host: '127.0.0.1' }))
process.once('SIGTERM', () => app.close()) // requests under way are answered
