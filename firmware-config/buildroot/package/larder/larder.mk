################################################################################
#
# larder
#
################################################################################

LARDER_VERSION = 0.1.0
LARDER_SITE = $(call qstrip,$(BR2_PACKAGE_LARDER_TARBALLS))
LARDER_SITE_METHOD = file
LARDER_SOURCE = larder-$(LARDER_VERSION)-$(call qstrip,$(BR2_PACKAGE_LARDER_TARGET)).tar.gz
LARDER_LICENSE = Apache-2.0 (larder), others (crates, see copyright)
LARDER_LICENSE_FILES = usr/share/doc/larder/copyright

LARDER_UNITS = larder.service larder.socket larder-retry.timer larder-scrub.service larder-scrub.timer

define LARDER_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(@D)/usr/bin/larder $(TARGET_DIR)/usr/bin/larder
	$(INSTALL) -D -m 0644 $(@D)/etc/larder/larder.toml $(TARGET_DIR)/etc/larder/larder.toml
endef

# Buildroot enables every unit that can be; the socket and the timer are for who wants them.
define LARDER_INSTALL_INIT_SYSTEMD
	$(foreach unit,$(LARDER_UNITS),\
		$(INSTALL) -D -m 0644 $(@D)/usr/lib/systemd/system/$(unit) \
			$(TARGET_DIR)/usr/lib/systemd/system/$(unit)
	)
	mkdir -p $(TARGET_DIR)/usr/lib/systemd/system-preset
	printf "disable %s\n" larder.socket larder-scrub.timer \
		> $(TARGET_DIR)/usr/lib/systemd/system-preset/60-larder.preset
endef

define LARDER_INSTALL_INIT_OPENRC
	$(INSTALL) -D -m 0755 $(@D)/openrc/larder $(TARGET_DIR)/etc/init.d/larder
endef

define LARDER_USERS
	larder -1 larder -1 * /var/lib/larder - - Larder image mirror
endef

$(eval $(generic-package))
