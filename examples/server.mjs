// The plugin of dit-native/server in an application of one's own: node examples/server.mjs, then a page to try
// it at http://127.0.0.1:3000/dit/, its description at /dit/openapi.json, and
//
//   curl -H 'Accept: image/png' -d '{"labels": "Sneaker", "guidance": 2}' -H 'Content-Type: application/json' \
//     -o shoe.png http://127.0.0.1:3000/dit/v1/images
//
// npm install dit-native fastify @fastify/swagger prom-client lru-cache. `dit serve` is the same without code.
import { DiT } from 'dit-native'
import { ditServer } from 'dit-native/server'
import Fastify from 'fastify'

const { PORT = '3000', MODEL = 'demo' } = process.env
const app = Fastify()
const dit = await DiT.load(MODEL, { maxQueue: 64 })
app.addHook('onClose', () => dit.close())

// Everything of it stays below the prefix: the application's own hooks, errors and routes are not touched.
await app.register(ditServer, { prefix: '/dit', model: dit, limits: { images: 4, steps: 100 } })

app.get('/', async (_request, reply) => reply.redirect('/dit/'))

console.log(await app.listen({ port: Number(PORT), host: '127.0.0.1' }))
process.once('SIGTERM', () => app.close()) // what is under way is finished
