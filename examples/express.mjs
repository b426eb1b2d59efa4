// Images in an application made with Express: node examples/express.mjs, then
//
//   curl -o shoe.png 'http://127.0.0.1:3000/images/Sneaker?seed=1'
//
// One model serves all requests: those that come at the same time share its steps.
import { DiT, DiTError } from 'dit-native'
import express from 'express'

const { PORT = '3000', MODEL = 'demo' } = process.env
const dit = await DiT.load(MODEL, { maxQueue: 32 }) // more wait no longer than anybody would

const app = express()

app.get('/images/:label', async (request, response) => {
  const left = new AbortController()
  response.on('close', () => left.abort()) // the client is gone, or has everything
  const { label } = request.params
  const { seed, steps = '25' } = request.query
  const [image] = await dit.sample(/^\d+$/.test(label) ? Number(label) : label, {
    steps: Math.min(Number(steps), 1000),
    guidance: 2,
    ...(seed !== undefined && { seed: Number(seed) }),
    caller: request.ip, // who asks for much does not make others wait
    signal: left.signal,
  })
  const png = await image.toPNG()
  response.set('X-Seed', String(image.seed)).type('png').send(png)
})

app.get('/stats', (_request, response) => {
  response.json(dit.stats())
})

app.use((error, request, response, next) => {
  if (response.destroyed) return // nobody is there to be told
  if (!(error instanceof DiTError)) return next(error)
  const status = { ERR_DIT_OPTION: 400, ERR_DIT_SHAPE: 400, ERR_DIT_BUSY: 503 }[error.code] ?? 500
  if (status === 503) response.set('Retry-After', String(Math.ceil(error.retryAfter ?? 1)))
  if (status === 500) console.error(`${request.method} ${request.url}:`, error)
  response.status(status).json({ error: { code: error.code, message: error.message } })
})

const server = app.listen(Number(PORT), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}`)
})
process.once('SIGTERM', () => server.close(() => dit.close())) // requests under way are answered
