import { DiT, DiTError, type RawImage } from 'dit-native'

async function main(): Promise<void> {
  const dit: DiT = await DiT.load('demo')
  const images: RawImage[] = await dit.sample([7], { steps: 2, seed: 3n })
  await dit.close()
  const error: unknown = await dit.sample(7).catch((reason: unknown) => reason)
  const code = error instanceof DiTError ? error.code : 'no DiTError'
  console.log(images[0]?.width, code)
}

void main()
