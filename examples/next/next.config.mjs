// Packages with native code are loaded as they are, not bundled.
export default { serverExternalPackages: ['dit-native', 'sharp'] }
