// Prints what the demo model makes of a seed: hashes of latents and of pixels.
import { createHash } from 'node:crypto'
import { createRequire } from 'node:module'
import { DiT, DiTError } from 'dit-native'

const required = createRequire(import.meta.url)('dit-native')
if (required.DiT !== DiT || required.DiTError !== DiTError) throw new Error('two copies')

const hash = ({ buffer, byteOffset, byteLength }) =>
  createHash('sha256')
    .update(Buffer.from(buffer, byteOffset, byteLength))
    .digest('hex')

const dit = await DiT.load('demo', { device: 'cpu' })
const options = { seed: 5, steps: 6, eta: 0.5, sampler: 'ddim' }
const latents = await dit.sample([7, 3], { ...options, output: 'latent' })
const [image] = await dit.sample(7, { seed: 5 })
console.log(hash(latents.data), hash(image.data))
await dit.close()
