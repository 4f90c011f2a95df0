#!/usr/bin/env bash
# An extension for the Armbian build framework: Larder is in the image and starts with it.
#
#   mkdir -p userpatches/extensions/larder
#   cp larder.sh larder_VERSION_ARCHITECTURE.deb userpatches/extensions/larder/
#   ./compile.sh build BOARD=... ENABLE_EXTENSIONS=larder
#
# The package is what cross/package.sh packs. Beside it may lie a larder.toml, which then takes the place of its own.

function pre_customize_image__install_larder() {
	declare -a packages=("${EXTENSION_DIR}"/larder_*_"${ARCH}".deb)
	if [[ ${#packages[@]} -ne 1 || ! -f "${packages[0]}" ]]; then
		exit_with_error "no larder_VERSION_${ARCH}.deb, or more than one" "${EXTENSION_DIR}"
	fi

	display_alert "Installing" "${packages[0]##*/}" "info"
	# The package enables the unit; nothing is started in an image that is being made.
	run_host_command_logged cp "${packages[0]}" "${SDCARD}/root/larder.deb"
	chroot_sdcard_apt_get_install /root/larder.deb
	run_host_command_logged rm "${SDCARD}/root/larder.deb"

	if [[ -f "${EXTENSION_DIR}/larder.toml" ]]; then
		run_host_command_logged install -m 644 "${EXTENSION_DIR}/larder.toml" "${SDCARD}/etc/larder/larder.toml"
		chroot_sdcard larder config check
	fi
}
