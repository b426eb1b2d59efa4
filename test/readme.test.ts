// The README's TypeScript runs as it stands, with a small model in the place of the downloaded one.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { fixture, temporaryFolder } from './helpers/files.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const readme = readFileSync(path.join(root, 'README.md'), 'utf8')
const snippets = [...readme.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map(
  (match) => match[1] as string,
)

test('there are snippets', () => {
  assert.ok(snippets.length >= 1)
})

for (const [i, snippet] of snippets.entries()) {
  test(`snippet ${i + 1} runs`, () => {
    const folder = temporaryFolder()
    mkdirSync(path.join(folder, 'node_modules'))
    symlinkSync(root, path.join(folder, 'node_modules/dit-native'))
    const program = snippet
      .replaceAll('facebook/DiT-XL-2-256', fixture('diffusers_pipeline'))
      .replace(/\[207(, 360)?\]/g, '[3, 4]') // the small model has five classes
    const file = path.join(folder, 'snippet.mts')
    writeFileSync(file, program)
    const args = ['--import', import.meta.resolve('tsx'), file]
    const { status, stderr } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' })
    assert.is(status, 0, stderr)
    for (const [, name = ''] of program.matchAll(/toFile\('([^']+)'\)/g)) {
      assert.ok(existsSync(path.join(folder, name)), `${name} was not written`)
    }
  })
}

test.run()
