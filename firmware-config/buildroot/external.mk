include $(sort $(wildcard $(BR2_EXTERNAL_LARDER_PATH)/package/*/*.mk))
