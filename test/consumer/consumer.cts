// The same package by require().
import dit = require('dit-native')

async function main(): Promise<number> {
  const model: dit.DiT = await dit.DiT.load('demo', { precision: 'fp32' })
  const [image] = await model.sample(0, { seed: 1 })
  await model.close()
  // @ts-expect-error: there may be no such image
  return image.width
}

void main()
