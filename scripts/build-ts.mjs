// lib/ → dist/: one CommonJS build, and a module that re-exports it to `import`. One copy of the code
// serves both, so that a DiTError is the same class whichever way the package was loaded.
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, rmSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
rmSync('dist', { recursive: true, force: true })
const tsc = spawnSync('node_modules/.bin/tsc', ['-p', 'tsconfig.build.json'], { stdio: 'inherit' })
if (tsc.status !== 0) process.exit(1)

writeFileSync('dist/package.json', '{ "type": "commonjs" }\n')
for (const entry of ['dist/index', 'dist/server/index']) {
  writeFileSync(`${entry}.mjs`, "export * from './index.js'\n")
  writeFileSync(`${entry}.d.mts`, "export * from './index.js'\n")
}
cpSync('lib/server/playground', 'dist/server/playground', {
  recursive: true,
  filter: (file) => !file.endsWith('tsconfig.json'),
})
if (existsSync('dist/cli/main.js')) chmodSync('dist/cli/main.js', 0o755)
