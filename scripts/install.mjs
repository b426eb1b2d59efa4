// The package's install script. Says and does nothing where the package has a binary that loads here,
// so it may as well be blocked; otherwise builds one from the sources, or says what that would take.
// With npm_config_build_from_source=true it builds in any case.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { missingPackages } from './build-tools.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Why the binary cannot be used; undefined where it can, null where nothing can tell yet. */
function obstacle() {
  if (!existsSync(`${root}dist/native.js`)) return null // a clone, before its first build
  try {
    createRequire(import.meta.url)('../dist/native.js').native()
    return undefined
  } catch (error) {
    return error.message.split(/(?<=\.) /)[0]
  }
}

function fail(text) {
  console.error(`dit-native: ${text}`)
  process.exit(1)
}

function build(reason) {
  if (process.platform !== 'linux') fail(`${reason} Run it on Linux.`)
  const missing = missingPackages()
  if (missing.length > 0) {
    fail(
      `${reason} It can be built from its sources here, but that needs what this system lacks: ` +
        `${missing.join(', ')} (so Debian and Ubuntu call it; libdnnl-dev is oneDNN). Install it, then ` +
        'dit-native again.',
    )
  }
  console.log(`dit-native: ${reason} Building from the sources, which takes minutes.`)
  const script = `${root}scripts/build-native.mjs`
  if (spawnSync(process.execPath, [script], { stdio: 'inherit' }).status !== 0) {
    fail('the build failed; its messages are above.')
  }
  const problem = obstacle()
  if (problem) fail(problem)
}

const forced = process.env.npm_config_build_from_source === 'true'
const reason = forced ? 'npm_config_build_from_source is set.' : obstacle()
if (reason !== undefined) build(reason ?? 'This is a clone, not yet built.')
