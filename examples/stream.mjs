// Watching an image form, and giving up in the middle of another. node examples/stream.mjs
import { DiT } from 'dit-native'

const dit = await DiT.load('demo')

// Progress after every step, a preview every fifth, the image at the end. Who is slow here misses previews; it
// never holds up the model.
for await (const event of dit.stream('Dress', { steps: 20, guidance: 2, seed: 3, preview: 5 })) {
  if (event.type === 'progress') console.log(`step ${event.step} of ${event.steps}`)
  if (event.type === 'preview') await event.image.toFile(`preview-${event.step}.png`)
  if (event.type === 'images') await event.images[0].toFile('dress.png')
}

// Leaving the loop cancels: nothing is computed for it from the next step on.
for await (const event of dit.stream('Coat', { sampler: 'ddpm', steps: 1000 })) {
  if (event.type === 'progress' && event.step >= 10) break
}

// So does an AbortSignal; the call rejects with its reason.
const tooSlow = AbortSignal.timeout(100)
try {
  await dit.sample('Coat', { sampler: 'ddpm', steps: 1000, signal: tooSlow })
} catch (error) {
  if (error !== tooSlow.reason) throw error
  console.log('given up after 100 ms')
}
await dit.close()
