const { DiT } = require('dit-native')
const { version } = require('dit-native/package.json')

DiT.load('demo')
  .then(async (dit) => {
    const [image] = await dit.sample(7, { steps: 2 })
    await dit.close()
    console.log(version, image.width, image.height)
  })
  .catch((error) => {
    console.error(error)
    process.exitCode = 1
  })
